"""The official weights give torchvision's logits. They are downloaded: no network, no test."""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision

from tests.oracle import MODELS, deviation

pytestmark = pytest.mark.extended  # the weights are 280 MB


@pytest.fixture(scope="module", params=MODELS)
def official(request):
    """The name of a network, its official weights and the file that they were downloaded to."""
    weights = torchvision.models.get_model_weights(request.param)["IMAGENET1K_V1"]
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    if not file.exists():
        try:
            urllib.request.urlopen(weights.url, timeout=10).close()
        except OSError as error:
            pytest.skip(f"cannot download {weights.url}: {error}")
    state_dict = weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    return request.param, state_dict, file


def test_the_file_has_the_hash_in_its_name(official):
    _, _, file = official
    expected = file.stem.split("-")[-1]  # resnet18-f37072fd
    assert hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected)


def test_official_weights_give_torchvisions_logits(official):
    name, state_dict, _ = official
    theirs = torchvision.models.get_model(name)
    theirs.load_state_dict(state_dict)
    ours = MODELS[name].from_state_dict(state_dict)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs.eval()(images)
        assert deviation(ours.eval()(images), expected) <= 1e-5

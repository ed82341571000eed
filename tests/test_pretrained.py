"""`from_pretrained` loads the official weights with torch alone.

The tests publish random weights at a file: address, so that they need no network.
tests/docs/test_peers.py downloads the real ones.
"""

from __future__ import annotations

import pickle
import sys

import pytest
import torch
import torchvision
from torch import nn

from alexnet import AlexNet
from tests.official import let_be_official, with_hash
from tests.oracle import MODELS


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty folder for what is downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_address_is_that_of_torchvisions_official_weights(name):
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    assert weights.url == sys.modules[MODELS[name].__module__].WEIGHTS_URL


def test_official_weights_load_with_torch_alone_and_are_downloaded_once(
    name, expected_model, tmp_path, monkeypatch
):
    # One number for each tensor, so that the file is small.
    shapes = {key: tensor.shape for key, tensor in expected_model.state_dict().items()}
    weights = {key: torch.rand(()).expand(shape) for key, shape in shapes.items()}
    torch.save(weights, tmp_path / "weights.pth")
    published = with_hash(tmp_path / "weights.pth")
    for package in ("torchvision", "numpy", "PIL"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for address in (published, tmp_path / "unreachable" / published.name):
        let_be_official(address, name, monkeypatch)
        loaded = MODELS[name].from_pretrained().state_dict()
        for (key, tensor), expected in zip(loaded.items(), weights.values()):
            assert torch.equal(tensor, expected.to(tensor.dtype)), key


def test_dropout_of_the_pretrained_alexnet_is_what_was_asked_for(monkeypatch):
    with torch.device("meta"):
        weights = AlexNet().state_dict()
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: weights)
        assert AlexNet.from_pretrained().dropout.p == 0.5
        assert AlexNet.from_pretrained(dropout=0.25).dropout.p == 0.25


def test_file_with_a_wrong_hash_is_refused_and_not_kept(name, monkeypatch, tmp_path, cache):
    file = tmp_path / "weights-00000000.pth"
    torch.save({}, file)
    let_be_official(file, name, monkeypatch)
    with pytest.raises(RuntimeError, match="hash"):
        MODELS[name].from_pretrained()
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_file_that_holds_more_than_tensors_is_refused(name, monkeypatch, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(nn.Linear(1, 1), file)
    let_be_official(with_hash(file), name, monkeypatch)
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        MODELS[name].from_pretrained()

"""The setup of docs/deploy.md is right. `tests/deploy.sh` runs the recipes, with their engines."""

import pytest
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights

from tests.deploy import ROOT, set_up
from tests.oracle import MODELS, deviation


@pytest.mark.parametrize("network", MODELS)
def test_the_setup_gives_the_logits_of_torchvisions_transforms(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = set_up(network)
    photo = Image.open(ROOT / "docs" / "cat.jpg")
    with torch.no_grad():
        expected = variables["theirs"](ResNet18_Weights.IMAGENET1K_V1.transforms()(photo)[None])
    assert variables["images"].dtype == torch.uint8
    assert deviation(variables["expected"], expected) <= 1e-5

"""What the networks promise about weights of others and about learning, with more than torch."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from sklearn import datasets

from tests.oracle import MODELS, deviation, oracle

CAT = Path(__file__).parents[2] / "docs" / "cat.jpg"
HOUSE_CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}


@pytest.mark.parametrize("num_classes, in_channels", [(1000, 3), (7, 1)])
def test_checkpoints_of_timm_load(num_classes, in_channels):
    theirs = timm.create_model("resnet18", num_classes=num_classes, in_chans=in_channels)
    weights = oracle("resnet18", num_classes=num_classes).state_dict()
    weights["conv1.weight"] = weights["conv1.weight"][:, :in_channels]
    theirs.load_state_dict(weights)
    ours = MODELS["resnet18"].from_state_dict(theirs.state_dict())
    images = torch.randn(2, in_channels, 64, 64)
    with torch.inference_mode():
        expected = theirs.eval()(images)
        assert expected.shape == (2, num_classes)
        assert deviation(ours.eval()(images), expected) <= 1e-5


def test_official_weights_give_torchvisions_logits_and_find_a_house_cat(name):
    official = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    if not Path(torch.hub.get_dir(), "checkpoints", Path(official.url).name).exists():
        try:
            urllib.request.urlopen(official.url, timeout=10).close()
        except OSError as error:
            pytest.skip(f"cannot download {official.url}: {error}")
    ours = MODELS[name].from_pretrained().eval()
    theirs = torchvision.models.get_model(name, weights=official).eval()
    images = official.transforms()(Image.open(CAT))[None]
    with torch.inference_mode():
        logits = ours(images)
        assert deviation(logits, theirs(images)) <= 1e-5
    assert official.meta["categories"][logits.argmax()] in HOUSE_CATS


@pytest.mark.parametrize(
    "name, size, batch_size, lr", [("alexnet", 64, 64, 0.005), ("resnet18", 32, 32, 0.01)]
)
def test_new_network_learns_handwritten_digits_in_sixty_steps(name, size, batch_size, lr):
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    images, labels = (images - images.mean()) / images.std(), torch.tensor(digits.target)
    images = F.interpolate(images, size=(size, size), mode="bilinear")
    model = MODELS[name](num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(60):
        batch = torch.randint(1500, (batch_size,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        predictions = model.eval()(images[1500:]).argmax(1)
    accuracy = (predictions == labels[1500:]).float().mean().item()
    assert accuracy > 0.5, f"chance is 0.1, this is {accuracy:.3f}"

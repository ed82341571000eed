"""Both networks learn from scratch: scikit-learn's handwritten digits, whatever the seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.oracle import MODELS


@pytest.fixture(scope="module")
def digits():
    """1797 handwritten digits as images (1797, 1, 8, 8) of mean 0 and variance 1, and labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    return (images - images.mean()) / images.std(), torch.tensor(digits.target)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "name, size, batch_size, lr", [("alexnet", 64, 64, 0.005), ("resnet18", 32, 32, 0.01)]
)
def test_learns_the_digits_in_sixty_steps(name, size, batch_size, lr, seed, digits):
    images, labels = digits
    images = F.interpolate(images, size=(size, size), mode="bilinear")
    torch.manual_seed(seed)
    model = MODELS[name](num_classes=10, in_channels=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
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

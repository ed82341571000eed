"""Initialization, dropout, and learning from a new network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision

from alexnet import AlexNet
from resnet18 import ResNet18
from tests.oracle import MODELS


def test_resnet18_starts_with_the_weights_of_torchvision_for_the_same_seed():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    torch.manual_seed(3)
    ours = ResNet18().state_dict()
    assert len(ours) == len(theirs) == 122
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name.replace("shortcut", "downsample")]), name


def test_alexnet_starts_with_variance_one_over_fan_in_and_biases_of_zero():
    for name, parameter in AlexNet().named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            fan_in = parameter[0].numel()
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=0.03), name


def test_alexnet_drops_out_after_fc1_and_fc2_in_training_only():
    model, captured = AlexNet(num_classes=2, dropout=0.25), []
    model.dropout.register_forward_hook(lambda _, args, output: captured.append((args[0], output)))
    model.fc1.register_forward_hook(lambda _, __, output: captured.append(output))
    model.fc2.register_forward_hook(lambda _, __, output: captured.append(output))
    images = torch.randn(8, 3, 63, 63)
    model(images)
    fc1, (after_fc1, dropped1), fc2, (after_fc2, dropped2) = captured
    assert torch.equal(after_fc1, fc1.relu())
    assert torch.equal(after_fc2, fc2.relu())
    for before, after in ((after_fc1, dropped1), (after_fc2, dropped2)):
        alive = before > 0
        assert (after[alive] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
        kept = alive & (after != 0)
        assert torch.allclose(after[kept], before[kept] / 0.75)
    with torch.no_grad():
        assert torch.equal(model.eval()(images), model(images))


def test_same_seed_gives_the_same_weights_and_gradients(name):
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(7)
            model = MODELS[name](num_classes=5)
            logits = model(torch.randn(4, 3, 64, 64))
            gradients = torch.autograd.grad(logits.square().mean(), list(model.parameters()))
            results.append([logits, *gradients, *model.state_dict().values()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(*results))


@pytest.fixture(scope="module")
def digits():
    """1797 handwritten digits as images (1797, 1, 8, 8) of mean 0 and variance 1, and labels."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    return (images - images.mean()) / images.std(), torch.tensor(digits.target)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
@pytest.mark.parametrize(
    "name, size, batch_size, lr", [("alexnet", 64, 64, 0.005), ("resnet18", 32, 32, 0.01)]
)
def test_learns_handwritten_digits_in_sixty_steps(name, size, batch_size, lr, seed, digits):
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

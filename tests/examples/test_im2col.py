"""Small convolutions are matrix products in training, and the network computes the same."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

pytest.importorskip("tyro")  # of the requirements of the examples

from examples.im2col import im2col_for_few_pixels
from resnet18 import ResNet18
from tests.oracle import MODELS

CPU = torch.device("cpu")

# In ResNet-18, these sizes give last stages of 1 × 1, 2 × 2, 2 × 3 and 3 × 3 pixels; AlexNet's
# smallest has 3 × 3.
SIZES = [(32, 32), (64, 64), (64, 96), (96, 96)]


@pytest.mark.parametrize(
    ("name", "size"),
    [("alexnet", (63, 63)), *(("resnet18", size) for size in SIZES)],
    ids=str,
)
def test_logits_and_gradients_are_those_of_the_convolutions(name, size):
    torch.manual_seed(0)
    network = MODELS[name](num_classes=10).double().to(memory_format=torch.channels_last)
    images = torch.randn(4, 3, *size, dtype=torch.float64).to(memory_format=torch.channels_last)

    def logits_and_gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)  # for dropout
        logits = network(images)
        loss = F.cross_entropy(logits, torch.arange(4))
        return [logits, *torch.autograd.grad(loss, list(network.parameters()))]

    expected = logits_and_gradients()
    with im2col_for_few_pixels(CPU):
        torch.testing.assert_close(logits_and_gradients(), expected)


def convolutions(size: int, device: torch.device) -> int:
    """Count the convolutions that ResNet-18 leaves to PyTorch for images of this size."""
    network = ResNet18(num_classes=10).to(device).eval()
    images = torch.zeros(2, 3, size, size, device=device)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, im2col_for_few_pixels(device):
        network(images)
    return count(profiler)


def count(profiler: profile) -> int:
    return {event.key: event.count for event in profiler.key_averages()}["aten::convolution"]


@pytest.mark.parametrize(("size", "expected"), [(32, 10), (64, 15), (96, 15), (128, 20), (224, 20)])
def test_stages_with_at_most_3_by_3_pixels_are_matrix_products(size, expected):
    assert convolutions(size, CPU) == expected


def test_on_other_devices_nothing_is_changed():
    assert convolutions(64, torch.device("meta")) == 20


def test_training_and_its_validation_use_them(digits, tmp_path):
    from examples.train import main
    from tests.examples.training import TRAIN, VAL, arguments

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        main(arguments(digits, tmp_path, "--workers", 0))  # 32 × 32, two epochs, batches of 8
    batches = 3 * TRAIN // 8 + math.ceil(3 * VAL / 8)  # three classes
    assert count(profiler) == 2 * batches * 10

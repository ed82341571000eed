"""The shapes of both networks: every layer, any size, any number of classes and channels."""

from __future__ import annotations

import itertools

import pytest
import torch

from resnet18 import BasicBlock
from tests.oracle import MODELS

# What each layer returns for an image of 224 x 224, in the order of the forward pass.
LAYERS = {
    "alexnet": [
        ("conv1", (64, 55, 55)),
        ("pool", (64, 27, 27)),
        ("conv2", (192, 27, 27)),
        ("pool", (192, 13, 13)),
        ("conv3", (384, 13, 13)),
        ("conv4", (256, 13, 13)),
        ("conv5", (256, 13, 13)),
        ("pool", (256, 6, 6)),
        ("fc1", (4096,)),
        ("dropout", (4096,)),
        ("fc2", (4096,)),
        ("dropout", (4096,)),
        ("fc3", (1000,)),
    ],
    "resnet18": [
        ("conv1", (64, 112, 112)),
        ("bn1", (64, 112, 112)),
        ("maxpool", (64, 56, 56)),
        ("layer1", (64, 56, 56)),  # so do all layers inside it, and inside the others
        ("layer2", (128, 28, 28)),
        ("layer3", (256, 14, 14)),
        ("layer4", (512, 7, 7)),
        ("avgpool", (512, 1, 1)),
        ("fc", (1000,)),
    ],
}

# The modules of each network, in the order of its summary.
MODULES = {
    "alexnet": [
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "conv5",
        "pool",
        "fc1",
        "fc2",
        "fc3",
        "dropout",
    ],
    "resnet18": [
        "conv1",
        "bn1",
        "maxpool",
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "avgpool",
        "fc",
    ],
}

SIZES = {
    "alexnet": [(63, 63), (64, 95), (227, 227), (320, 101)],
    "resnet18": [(1, 1), (32, 32), (33, 57), (320, 101)],
}

SUMMARIES = {
    "alexnet": """\
AlexNet(
  (conv1): Conv2d(3, 64, kernel_size=(11, 11), stride=(4, 4), padding=(2, 2))
  (conv2): Conv2d(64, 192, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2))
  (conv3): Conv2d(192, 384, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (conv4): Conv2d(384, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (conv5): Conv2d(256, 256, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
  (pool): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=False)
  (fc1): Linear(in_features=9216, out_features=4096, bias=True)
  (fc2): Linear(in_features=4096, out_features=4096, bias=True)
  (fc3): Linear(in_features=4096, out_features=1000, bias=True)
  (dropout): Dropout(p=0.5, inplace=False)
)""",
    "resnet18": """\
ResNet18(
  (conv1): Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)
  (bn1): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
  (maxpool): MaxPool2d(kernel_size=3, stride=2, padding=1, dilation=1, ceil_mode=False)
  (layer1): Sequential(
    (0): BasicBlock(
      (conv1): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn1): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (conv2): Conv2d(64, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
      (bn2): BatchNorm2d(64, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
      (shortcut): Sequential()
    )
""",
}


def test_every_layer_returns_the_shape_that_the_file_says(name):
    model, calls = MODELS[name]().eval(), []
    for key, module in model.named_modules():
        if key:
            module.register_forward_hook(
                lambda module, args, output, key=key: calls.append(
                    (key.split(".")[0], tuple(output.shape[1:]))
                )
            )
    model(torch.randn(1, 3, 224, 224))
    assert [call for call, _ in itertools.groupby(calls)] == LAYERS[name]


def test_modules_are_listed_in_the_order_of_the_specification(name):
    assert [child for child, _ in MODELS[name]().named_children()] == MODULES[name]


def test_summary_is_that_of_the_specification(name):
    lines, expected = str(MODELS[name]()).splitlines(), SUMMARIES[name].splitlines()
    if name == "alexnet":
        assert len(lines) == len(expected)
    for number, line in enumerate(expected):
        for part in line.rstrip("()").split(", "):  # newer PyTorch prints more of them
            assert part in lines[number]


def test_images_of_any_size(name, model):
    for height, width in SIZES[name]:
        assert model(torch.randn(2, 3, height, width)).shape == (2, 1000)


@pytest.mark.parametrize("num_classes, in_channels", [(1000, 3), (10, 1), (2, 4)])
def test_any_number_of_classes_and_input_channels(name, num_classes, in_channels):
    model = MODELS[name](num_classes, in_channels)
    assert model(torch.randn(3, in_channels, 64, 64)).shape == (3, num_classes)


@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_any_batch_size(model, batch_size):
    assert model(torch.randn(batch_size, 3, 64, 64)).shape == (batch_size, 1000)


@pytest.mark.parametrize(
    "in_channels, out_channels, stride, size",
    [(8, 8, 1, 9), (8, 16, 1, 9), (16, 8, 1, 9), (8, 8, 2, 5)],
)
def test_block_halves_the_image_with_stride_2_and_rounds_up(
    in_channels, out_channels, stride, size
):
    block = BasicBlock(in_channels, out_channels, stride)
    assert block(torch.randn(2, in_channels, 9, 9)).shape == (2, out_channels, size, size)
    assert len(block.shortcut) == (0 if in_channels == out_channels and stride == 1 else 2)

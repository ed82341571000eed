"""The shapes of both networks: every line of `forward`, any batch, classes and channels."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from resnet18 import BasicBlock, ResNet18
from tests.oracle import MODELS

LAYERS = {  # in the order of the specification
    "alexnet": "conv1 conv2 conv3 conv4 conv5 pool fc1 fc2 fc3 dropout",
    "resnet18": "conv1 bn1 maxpool layer1 layer2 layer3 layer4 avgpool fc",
}


def test_layers_have_the_names_and_the_order_of_the_specification(name, model):
    assert [layer for layer, _ in model.named_children()] == LAYERS[name].split()


def test_every_line_of_forward_computes_the_shape_in_its_comment(name, model):
    forward = inspect.getsource(MODELS[name].forward)
    lines = re.findall(r"^ +(x = .+)  # \((.+?)\)", forward, re.M)
    assert len(lines) == forward.count(" x = "), "a line has no shape"
    images = torch.randn(2, 3, 224, 224)
    variables = {**inspect.getmodule(MODELS[name]).__dict__, "self": model, "x": images}
    with torch.no_grad():
        for line, comment in lines:
            exec(line, variables)
            shape = str(tuple(variables["x"].shape))
            expected = comment.replace("num_classes", "1000").replace("N", "2")
            assert shape == f"({expected})", line
        assert torch.equal(variables["x"], model(images))  # those were all lines


@pytest.mark.parametrize("batch_size", [0, 1, 5])
def test_any_batch_size(model, batch_size):
    assert model(torch.randn(batch_size, 3, 64, 64)).shape == (batch_size, 1000)


def test_any_number_of_classes_and_input_channels(name):
    with torch.device("meta"):
        assert MODELS[name](2, 4)(torch.randn(3, 4, 64, 64)).shape == (3, 2)


def test_a_cifar_stem_keeps_small_images_large():
    with torch.device("meta"):
        model, shapes = ResNet18(10, cifar_stem=True), {}
    for layer, module in model.named_children():
        module.register_forward_hook(
            lambda module, args, output, layer=layer: shapes.update({layer: tuple(output.shape)})
        )
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert shapes["maxpool"] == (2, 64, 32, 32)
    assert shapes["layer4"] == (2, 512, 4, 4)
    assert shapes["fc"] == (2, 10)


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


def test_images_that_are_no_batch_of_large_enough_float32_images_raise(name, model):
    bad = {
        "unbatched": torch.zeros(3, 64, 64),
        "five dimensions": torch.zeros(1, 2, 3, 64, 64),
        "one channel": torch.zeros(2, 1, 64, 64),
        "four channels": torch.zeros(2, 4, 64, 64),
        "channels last in shape": torch.zeros(2, 64, 64, 3),
        "no pixels": torch.zeros(2, 3, 0, 64),
        "bytes": torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        "float64": torch.zeros(2, 3, 64, 64, dtype=torch.float64),
    }
    if name == "alexnet":
        bad["too low"] = torch.zeros(2, 3, 62, 64)
        bad["too narrow"] = torch.zeros(2, 3, 64, 62)
    for kind, images in bad.items():
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
            model(images)
            pytest.fail(f"{kind} images were taken")

"""The networks are built as their docstrings and papers say."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from alexnet import AlexNet
from resnet18 import BasicBlock, ResNet18


def test_modules_stand_in_the_order_of_the_specification():
    assert [name for name, _ in AlexNet(2).named_children()] == (
        ["conv1", "conv2", "conv3", "conv4", "conv5", "pool", "fc1", "fc2", "fc3", "dropout"]
    )
    assert [name for name, _ in ResNet18().named_children()] == (
        ["conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    )
    assert [name for name, _ in BasicBlock(64, 64).named_children()] == (
        ["conv1", "bn1", "conv2", "bn2", "shortcut"]
    )


def test_arguments_are_those_of_the_documentation():
    def arguments(function):
        parameters = list(inspect.signature(function).parameters.values())
        return {parameter.name: parameter.default for parameter in parameters}

    assert arguments(AlexNet) == {"num_classes": 1000, "in_channels": 3, "dropout": 0.5}
    assert arguments(ResNet18) == {"num_classes": 1000, "in_channels": 3}
    assert list(arguments(BasicBlock)) == ["in_channels", "out_channels", "stride"]


def test_the_shortcut_is_empty_where_the_shape_stays():
    assert len(BasicBlock(64, 64).shortcut) == 0
    assert len(BasicBlock(64, 128, stride=2).shortcut) == 2
    assert len(BasicBlock(64, 128).shortcut) == 2


def test_alexnet_drops_after_fc1_and_fc2_in_training_alone():
    model = AlexNet(num_classes=2, dropout=0.25)
    seen = []
    model.dropout.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model.fc1.register_forward_hook(lambda _, __, output: seen.append(output))
    model.fc2.register_forward_hook(lambda _, __, output: seen.append(output))
    images = torch.randn(8, 3, 63, 63)
    model(images)
    fc1, (after_fc1, dropped1), fc2, (after_fc2, dropped2) = seen
    assert torch.equal(after_fc1, fc1.relu())
    assert torch.equal(after_fc2, fc2.relu())
    for before, after in ((after_fc1, dropped1), (after_fc2, dropped2)):
        alive = before > 0
        assert (after[alive] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
        kept = alive & (after != 0)
        assert torch.allclose(after[kept], before[kept] / 0.75)

    with torch.no_grad():
        assert torch.equal(model.eval()(images), model(images))


def test_alexnet_starts_with_variance_one_over_fan_in_and_no_bias():
    for name, parameter in AlexNet().named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            fan_in = parameter[0].numel()
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=0.03), name


def test_resnet18_starts_with_variance_two_over_fan_out():
    for module in ResNet18().modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()

"""`ResNet18(cifar_stem=True)` is the ResNet-18 of github.com/kuangliu/pytorch-cifar."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet18 import ResNet18
from tests.oracle import assert_same_training_step, deviation, randomize


class KuangliusBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_planes != planes:
            projection = nn.Conv2d(in_planes, planes, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


class KuangliusNetwork(nn.Module):
    """A network with the modules, names and operations of theirs, for 32 x 32 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        in_planes = 64
        for index, (planes, stride) in enumerate([(64, 1), (128, 2), (256, 2), (512, 2)], 1):
            first = KuangliusBlock(in_planes, planes, stride)
            layer = nn.Sequential(first, KuangliusBlock(planes, planes, 1))
            setattr(self, f"layer{index}", layer)
            in_planes = planes
        self.linear = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.avg_pool2d(x, 4).flatten(1))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(0)
    return randomize(KuangliusNetwork()).eval()


@pytest.fixture(scope="module")
def ours(theirs) -> nn.Module:
    """Our network with the weights of theirs."""
    return ResNet18.from_state_dict(theirs.state_dict()).eval()


def test_logits_equal_kuanglius(ours, theirs):
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert deviation(ours(images), theirs(images)) <= 1e-5


def test_a_training_step_equals_kuanglius(ours, theirs):
    """The loss, every gradient and the batch-norm statistics."""
    ours, theirs = (copy.deepcopy(network).train() for network in (ours, theirs))
    assert_same_training_step(ours, theirs, torch.randn(4, 3, 32, 32))


def test_checkpoint_of_a_network_with_a_cifar_stem_loads_again(ours):
    again = ResNet18.from_state_dict(ours.state_dict()).eval()
    assert str(again) == str(ours) == str(ResNet18(10, cifar_stem=True))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(images), ours(images))


def test_first_convolution_starts_as_the_others_with_variance_two_over_fan_out():
    model = ResNet18(cifar_stem=True)
    for layer in (model.conv1, model.layer1[0].conv1):
        assert layer.weight.std().item() == pytest.approx((2 / (64 * 3 * 3)) ** 0.5, rel=0.05)


def test_without_it_the_stem_is_that_of_imagenet():
    model = ResNet18()
    assert str(model.conv1).startswith("Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), padding=")
    assert str(model.maxpool).startswith("MaxPool2d(kernel_size=3, stride=2, padding=1")

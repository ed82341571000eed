"""The weights of a new network, and dropout. tests/docs/test_peers.py lets both networks learn."""

from __future__ import annotations

import pytest
import torch
import torchvision

from alexnet import AlexNet
from resnet18 import ResNet18


def test_resnet18_starts_with_the_weights_of_torchvision_for_the_same_seed():
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18().state_dict()
    torch.manual_seed(3)
    ours = ResNet18().state_dict()
    assert len(ours) == len(theirs) == 122
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name.replace("shortcut", "downsample")]), name


@pytest.fixture(scope="module")
def alexnet() -> AlexNet:
    torch.manual_seed(0)
    return AlexNet(dropout=0.25)


def test_alexnet_starts_with_variance_one_over_fan_in_and_biases_of_zero(alexnet):
    for name, parameter in alexnet.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            fan_in = parameter[0].numel()
            assert parameter.std().item() == pytest.approx(fan_in**-0.5, rel=0.03), name


def test_alexnet_drops_out_after_fc1_and_fc2_in_training_only(alexnet):
    model, captured = alexnet.train(), []
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

"""Our networks beside torchvision's, with the same weights, all of them random."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from alexnet import AlexNet
from resnet18 import ResNet18

MODELS = {"alexnet": AlexNet, "resnet18": ResNet18}


def oracle(name: str, **options: object) -> nn.Module:
    """Return torchvision's model with the weights of `randomize`."""
    torch.manual_seed(0)
    return randomize(torchvision.models.get_model(name, **options))


def randomize(model: nn.Module) -> nn.Module:
    """Let every parameter and statistic of a network be random and of a good size.

    As built, batch norm does nothing and AlexNet's logits are almost the same for all images:
    that would hide mistakes.
    """
    has_batch_norm = False
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            has_batch_norm = True
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    *_, weight, _ = model.parameters()
    weight.data /= 50 if has_batch_norm else 4  # else softmax is 1 for one class of any image
    return model


def assert_same_training_step(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    """Compare the loss, every gradient and the batch-norm statistics of both networks."""
    labels = torch.tensor([3, 1, 4, 1])
    loss, expected_loss = (F.cross_entropy(network(images), labels) for network in (ours, theirs))
    loss.backward()
    expected_loss.backward()

    assert deviation(loss, expected_loss) <= 1e-5
    for (key, parameter), expected in zip(ours.named_parameters(), theirs.parameters()):
        assert parameter.grad.abs().max() > 0, key
        assert deviation(parameter.grad, expected.grad) <= 1e-4, key
    for (key, buffer), expected in zip(ours.named_buffers(), theirs.buffers()):
        assert deviation(buffer, expected) <= 1e-5, key


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value expected."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()

"""The two networks: what is known of each, and the form in which they take pixels."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from alexnet import AlexNet
from examples.lib.command import Precision, require
from resnet18 import ResNet18

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet's RGB values, from 0 to 1

Network = AlexNet | ResNet18


@dataclass(frozen=True)
class Architecture:
    """What is known of a network beside its layers.

    Attributes:
        network: its class.
        head: the name of its last layer, which gives the logits.
        features: the number of inputs of the head.
        learning_rate: the peak for training from random weights in batches of 256 images.
        weight_decay: as in the paper.
        min_image_size: the smallest height and width of its images, in pixels.
    """

    network: type[AlexNet] | type[ResNet18]
    head: str
    features: int
    learning_rate: float
    weight_decay: float
    min_image_size: int


ARCHITECTURES = {
    "alexnet": Architecture(
        network=AlexNet,
        head="fc3",
        features=4096,
        learning_rate=0.02,
        weight_decay=5e-4,
        min_image_size=63,
    ),
    "resnet18": Architecture(
        network=ResNet18,
        head="fc",
        features=512,
        learning_rate=0.1,
        weight_decay=1e-4,
        min_image_size=1,
    ),
}


def check_image_size(name: str, size: int) -> None:
    """Raise `UserError` if images of this size are too small for the network."""
    architecture = ARCHITECTURES[name]
    require(
        size >= architecture.min_image_size,
        f"--image-size {size} is too small: {architecture.network.__name__} needs at least "
        f"{architecture.min_image_size}",
    )


def normalize(pixels: Tensor) -> Tensor:
    """Map uint8 (N, 3, H, W) to what the networks expect, float32: as ImageNet's are normalized."""
    mean, std = (torch.tensor(values, device=pixels.device) for values in (MEAN, STD))
    return (pixels / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)


class PixelNetwork(nn.Module):
    """A network that takes pixels and normalizes them itself, as ImageNet's are normalized."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map RGB images, uint8 (N, 3, H, W), to logits (N, num_classes)."""
        logits: Tensor = self.network((pixels / 255 - self.mean) / self.std)
        return logits


def as_function(
    network: nn.Module, device: torch.device, precision: Precision
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a `PixelNetwork` as a function from pixels to logits, both NumPy arrays.

    It maps uint8 (N, 3, H, W) to float32 (N, num_classes). The network must be on the device.
    """

    @torch.no_grad()
    def logits(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels).to(device, memory_format=torch.channels_last)
        with autocast(device, precision):
            found: Tensor = network(images)
        return found.float().cpu().numpy()

    return logits


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a network computes in this precision.

    Its convolutions and matrix products are in "bfloat16" or "float16", or all of it in "float32".
    """
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

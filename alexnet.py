"""AlexNet in one column, as in Krizhevsky (2014), equal to torchvision's and taking its weights.

[2012] Krizhevsky, Sutskever, Hinton. ImageNet Classification with Deep Convolutional Neural
       Networks. https://papers.nips.cc/paper/4824
[2014] Krizhevsky. One weird trick for parallelizing convolutional neural networks.
       https://arxiv.org/abs/1404.5997

[2012] spreads the network over two GPUs and normalises local responses. [2014] puts it on one,
with 64-192-384-256-256 filters and no such normalisation: the network below.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Mapping

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers: 61,100,840 parameters.

    Args:
        num_classes: number of classes; ImageNet has 1000.
        in_channels: channels of an image, 3 for RGB.
        dropout: probability that a unit of fc1 or fc2 is dropped in training ([2012], 4.2).
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, kernel_size=5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)  # windows overlap ([2012], 3.4)
        self.fc1 = nn.Linear(256 * 6 * 6, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(dropout)

        # Variance 1 / fan_in, three times PyTorch's default. Under that default and under the
        # N(0, 0.01) of [2012] the signal fades on its way and training may never start; under
        # He's 2 / fan_in it grows, as max pooling already makes up for what ReLU takes.
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                parameter.data.mul_(3**0.5)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes).

        Shapes are those of 224 x 224 images. Max pooling and ReLU commute; pooling first leaves
        ReLU a quarter of the values. torchvision drops before fc1 and fc2, [2012] after them.

        Raises:
            ValueError: the images have another shape, or are smaller than 63 x 63.
            TypeError: the images have another dtype than the weights.
        """
        x = check_images(x, self.conv1.weight, self.conv1.in_channels)  # (N, 3, 224, 224)
        x = F.relu(self.pool(self.conv1(x)))  # (N, 64, 27, 27)
        x = F.relu(self.pool(self.conv2(x)))  # (N, 192, 13, 13)
        x = F.relu(self.conv3(x))  # (N, 384, 13, 13)
        x = F.relu(self.conv4(x))  # (N, 256, 13, 13)
        x = F.relu(self.pool(self.conv5(x)))  # (N, 256, 6, 6)
        x = F.adaptive_avg_pool2d(x, 6).flatten(1)  # (N, 9216), from any other size too
        x = self.dropout(F.relu(self.fc1(x)))  # (N, 4096)
        x = self.dropout(F.relu(self.fc2(x)))  # (N, 4096)
        x = self.fc3(x)  # (N, 1000)
        return x

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> AlexNet:
        """Build the model that a checkpoint holds, in the names of this file or of torchvision.

        Classes, channels, dtype and device are those of the tensors, which are copied.

        Raises:
            TypeError: `state_dict` is not a mapping from names to tensors.
            ValueError: tensors are missing, unexpected, or of another shape or dtype.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"AlexNet needs a state_dict, got {type(state_dict).__name__}")
        tensors = {}
        for key, tensor in state_dict.items():
            layer, _, parameter = str(key).rpartition(".")
            tensors[f"{TORCHVISION_NAMES.get(layer, layer)}.{parameter}"] = tensor
        if len(tensors) < len(state_dict):
            raise ValueError("AlexNet needs one name for each tensor, got two for some")
        first, last = tensors.get("conv1.weight"), tensors.get("fc3.weight")
        with torch.device("meta"):  # shapes alone: the values are the checkpoint's
            model = cls(
                num_classes=last.shape[0] if isinstance(last, Tensor) and last.ndim == 2 else 1000,
                in_channels=first.shape[1] if isinstance(first, Tensor) and first.ndim == 4 else 3,
            )
        if isinstance(first, Tensor) and first.is_floating_point():
            model.to(first.dtype)

        came = {name: describe(tensor) for name, tensor in tensors.items()}
        needed = {name: describe(tensor) for name, tensor in model.state_dict().items()}
        wrong = [
            f"{name} is {came.get(name, 'missing')}, not {needed.get(name, 'expected')}"
            for name in {**needed, **came}
            if came.get(name) != needed.get(name)
        ]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise ValueError(f"not the weights of AlexNet: {'; '.join(wrong[:4])}{more}")
        copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        model.load_state_dict(copies, assign=True)
        return model


TORCHVISION_NAMES = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc1",
    "classifier.4": "fc2",
    "classifier.6": "fc3",
}


def check_images(images: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Return the images if a network with this first `weight` can take them, else raise."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < 63:
        needed = f"a batch of images (N, {channels}, H, W) of at least 63 x 63"
        raise ValueError(f"AlexNet needs {needed}, got {shape}")
    castable = {torch.float32, torch.bfloat16, torch.float16}  # by autocast
    if images.dtype != weight.dtype and not (
        {images.dtype, weight.dtype} <= castable and torch.is_autocast_enabled(images.device.type)
    ):
        raise TypeError(f"AlexNet needs images of its weights' {weight.dtype}, got {images.dtype}")
    return images


torch.fx.wrap("check_images")  # so that a traced network calls it too


def describe(value: object) -> str:
    """Return the dtype and shape of a tensor, the type of anything else."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,  # what is wrong with an argument is said in one line
        description="Print a summary of AlexNet and time a forward pass.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    device = parser.parse_args().device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("alexnet.py: no CUDA device is available: use --device cpu")

    model = AlexNet().eval().to(device)
    images = torch.randn(1, 3, 224, 224, device=device)
    with torch.inference_mode():
        for _ in range(2):  # the first pass warms up
            start = time.perf_counter()
            logits = model(images).cpu()  # waits until the device is done
            milliseconds = (time.perf_counter() - start) * 1e3
    print(
        f"{model}\n"
        f"Parameters: {sum(parameter.numel() for parameter in model.parameters()):,}\n"
        f"Device:     {device}\n"
        f"Input:      {tuple(images.shape)}\n"
        f"Output:     {tuple(logits.shape)}\n"
        f"Time:       {milliseconds:.1f} ms, warm"
    )

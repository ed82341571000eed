"""ResNet-18 of He et al. (2015), equal to torchvision's and taking its weights and timm's.

[2015a] He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition.
        https://arxiv.org/abs/1512.03385
[2015b] He, Zhang, Ren, Sun. Delving Deep into Rectifiers. https://arxiv.org/abs/1502.01852

The 18-layer column of table 1 in [2015a], with projection shortcuts where the shape changes
(section 4.1, option B), as it is trained everywhere; the paper's own 18 layers padded with zeros
(option A).
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from typing import Mapping

import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them ([2015a], figure 5, left).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the first convolution; 2 halves height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))  # (N, out_channels, H / stride, W / stride)
        out = self.bn2(self.conv2(out))  # (N, out_channels, H / stride, W / stride)
        out = out + self.shortcut(x)  # y = F(x) + x ([2015a], equation 1)
        return F.relu(out, inplace=True)  # of a sum that no layer returned, so that no hook sees it


class ResNet18(nn.Module):
    """A convolution, eight residual blocks and one linear layer: 11,689,512 parameters.

    Args:
        num_classes: number of classes; ImageNet has 1000.
        in_channels: channels of an image, 3 for RGB.
    """

    def __init__(self, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, stride=2), BasicBlock(256, 256))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, stride=2), BasicBlock(512, 512))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # keeps the gradient's variance ([2015b], 2.2)
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes).

        Shapes are those of 224 x 224 images. Max pooling and ReLU commute; pooling first leaves
        ReLU a quarter of the values.

        Raises:
            ValueError: the images have another shape; or, in training, batch norm is left with
                one value per channel (a single image of up to 32 x 32).
            TypeError: the images have another dtype than the weights.
        """
        x = check_images(x, self.conv1.weight, self.conv1.in_channels)  # (N, 3, 224, 224)
        x = self.bn1(self.conv1(x))  # (N, 64, 112, 112)
        x = F.relu(self.maxpool(x))  # (N, 64, 56, 56)
        x = self.layer1(x)  # (N, 64, 56, 56)
        x = self.layer2(x)  # (N, 128, 28, 28)
        x = self.layer3(x)  # (N, 256, 14, 14)
        x = self.layer4(x)  # (N, 512, 7, 7)
        x = self.avgpool(x).flatten(1)  # (N, 512)
        x = self.fc(x)  # (N, 1000)
        return x

    def fuse(self) -> ResNet18:
        """Return a copy for inference, each batch norm folded into the convolution before it.

        The copy is in evaluation mode, needs no gradients, and keeps its weights channels-last,
        the order in which convolutions are fastest. Its logits are the same up to rounding.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        for module in list(fused.modules()):
            for conv, bn in ("conv1", "bn1"), ("conv2", "bn2"), ("0", "1"):
                if isinstance(getattr(module, bn, None), nn.BatchNorm2d):
                    pair = getattr(module, conv), getattr(module, bn)
                    setattr(module, conv, fuse_conv_bn_eval(*pair))
                    setattr(module, bn, nn.Identity())
        return fused.to(memory_format=torch.channels_last)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> ResNet18:
        """Build the model that a checkpoint holds, in the names of this file, torchvision or timm.

        Classes, channels, dtype and device are those of the tensors, which are copied.

        Raises:
            TypeError: `state_dict` is not a mapping from names to tensors.
            ValueError: tensors are missing, unexpected, or of another shape or dtype.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"ResNet18 needs a state_dict, got {type(state_dict).__name__}")
        tensors = {
            str(key).replace("downsample", "shortcut"): state_dict[key] for key in state_dict
        }
        if len(tensors) < len(state_dict):
            raise ValueError("ResNet18 needs one name for each tensor, got two for some")
        first, last = tensors.get("conv1.weight"), tensors.get("fc.weight")
        with torch.device("meta"):  # shapes alone: the values are the checkpoint's
            model = cls(
                num_classes=last.shape[0] if isinstance(last, Tensor) and last.ndim == 2 else 1000,
                in_channels=first.shape[1] if isinstance(first, Tensor) and first.ndim == 4 else 3,
            )
        if isinstance(first, Tensor) and first.is_floating_point():
            model.to(first.dtype)
        for key in model.state_dict():
            if key.endswith("num_batches_tracked"):  # a count that checkpoints before 2018 lack
                tensors.setdefault(key, torch.tensor(0))

        came = {name: describe(tensor) for name, tensor in tensors.items()}
        needed = {name: describe(tensor) for name, tensor in model.state_dict().items()}
        wrong = [
            f"{name} is {came.get(name, 'missing')}, not {needed.get(name, 'expected')}"
            for name in {**needed, **came}
            if came.get(name) != needed.get(name)
        ]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise ValueError(f"not the weights of ResNet-18: {'; '.join(wrong[:4])}{more}")
        copies = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        model.load_state_dict(copies, assign=True)
        return model


def check_images(images: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Return the images if a network with this first `weight` can take them, else raise."""
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != channels or min(shape[2:]) < 1:
        needed = f"a batch of images (N, {channels}, H, W) of at least 1 x 1"
        raise ValueError(f"ResNet18 needs {needed}, got {shape}")
    castable = {torch.float32, torch.bfloat16, torch.float16}  # by autocast
    if images.dtype != weight.dtype and not (
        {images.dtype, weight.dtype} <= castable and torch.is_autocast_enabled(images.device.type)
    ):
        raise TypeError(f"ResNet18 needs images of its weights' {weight.dtype}, got {images.dtype}")
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
        description="Print a summary of ResNet-18 and time a forward pass.",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    device = parser.parse_args().device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("resnet18.py: no CUDA device is available: use --device cpu")

    model = ResNet18().eval().to(device)
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

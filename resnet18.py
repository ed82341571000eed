# SPDX-License-Identifier: BSD-3-Clause
"""ResNet-18. With the same weights, its logits and gradients equal torchvision's and timm's.

[2015a] He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition.
        https://arxiv.org/abs/1512.03385
[2015b] He, Zhang, Ren, Sun. Delving Deep into Rectifiers. https://arxiv.org/abs/1502.01852

The network is the 18-layer column of table 1 in [2015a], with projection shortcuts where the shape
changes (option B of section 4.1). The 18-layer network of its table 2 pads with zeros (option A).
"""

import argparse
from typing import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# torchvision's official ImageNet weights (IMAGENET1K_V1): 69.758% top-1 accuracy
WEIGHTS_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them ([2015a], figure 5, left)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

        self.shortcut = nn.Sequential()  # empty: the identity
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(self.conv1(x)))  # (N, out_channels, ceil(H / stride), ...)
        out = self.bn2(self.conv2(out))  # the same shape: the residual of [2015a], 3.2
        return F.relu(out + self.shortcut(x))  # residual + x (equation 1) or + W x (equation 2)


class ResNet18(nn.Module):
    """A convolution, eight residual blocks and a linear layer: by default 11,689,512 parameters.

    `cifar_stem=True` is the usual variant for 32 x 32 images: the first convolution is 3 x 3 with
    stride 1, and there is no max pooling (github.com/kuangliu/pytorch-cifar).
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, cifar_stem: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        if cifar_stem:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = (
            nn.Identity() if cifar_stem else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        )
        self.layer1 = nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 64))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, stride=2), BasicBlock(256, 256))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, stride=2), BasicBlock(512, 512))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512, num_classes)

        # Convolutions with weights of variance 2 / fan_out ([2015b], equation 14; [2015a], 3.4,
        # refers to [2015b]). `fc` keeps PyTorch's default. torchvision does the same, so the same
        # seed gives the same initial weights.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W) to logits (N, num_classes).

        The shapes below are for 224 x 224 images and the default `conv1` and `maxpool`.
        """
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 64, 112, 112)
        x = self.maxpool(x)  # (N, 64, 56, 56)
        x = self.layer1(x)  # (N, 64, 56, 56)
        x = self.layer2(x)  # (N, 128, 28, 28)
        x = self.layer3(x)  # (N, 256, 14, 14)
        x = self.layer4(x)  # (N, 512, 7, 7)
        x = self.avgpool(x)  # (N, 512, 1, 1)
        x = torch.flatten(x, 1)  # (N, 512)
        x = self.fc(x)  # (N, num_classes)
        return x

    @classmethod
    def from_pretrained(cls) -> "ResNet18":
        """Build the network with torchvision's official ImageNet weights.

        The first call downloads 47 MB to `torch.hub.get_dir()`/checkpoints, by default
        ~/.cache/torch/hub/checkpoints. Later calls read the file there.

        Raises:
            urllib.error.URLError: the weights cannot be downloaded.
            RuntimeError: the downloaded file does not match the hash in its name.
        """
        state_dict = torch.hub.load_state_dict_from_url(
            WEIGHTS_URL, map_location="cpu", check_hash=True, weights_only=True
        )
        return cls.from_state_dict(state_dict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> "ResNet18":
        """Build the network from a state_dict.

        The names are those of this file, torchvision, timm or kuangliu/pytorch-cifar. The numbers
        of classes and of input channels are those of the tensors. A first convolution of 3 x 3
        means `cifar_stem=True`: stride 1 and no max pooling.

        Raises:
            RuntimeError: a tensor is missing, unexpected or of another shape.
        """
        weights = {}
        for name, tensor in state_dict.items():
            name = name.replace("downsample", "shortcut")  # torchvision's and timm's name
            name = name.replace("linear", "fc")  # kuangliu/pytorch-cifar's name
            weights[name] = tensor

        for name, dimensions in (("fc.weight", 2), ("conv1.weight", 4)):
            found = weights.get(name)
            if not isinstance(found, Tensor) or found.dim() != dimensions:
                raise RuntimeError(
                    f"ResNet18 needs a tensor {name} with {dimensions} dimensions. The first names "
                    f"here are {', '.join(list(state_dict)[:5]) or 'none'}. If this is a training "
                    'file, pass the state_dict in it: torch.load(file)["state_dict"], for example.'
                )
        model = cls(
            num_classes=weights["fc.weight"].shape[0],
            in_channels=weights["conv1.weight"].shape[1],
            cifar_stem=weights["conv1.weight"].shape[-1] == 3,
        )
        model.load_state_dict(weights)
        return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print ResNet-18 and run a forward pass.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device

    model = ResNet18().to(device).eval()
    images = torch.randn(1, 3, 224, 224, device=device)
    with torch.inference_mode():
        logits = model(images)

    print(model)
    print(f"Parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    print(f"Forward pass on {device}: {tuple(images.shape)} -> {tuple(logits.shape)}")

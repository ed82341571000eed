# SPDX-License-Identifier: BSD-3-Clause
"""AlexNet. With the same weights and dropout off, its logits and gradients equal torchvision's.

[2012] Krizhevsky, Sutskever, Hinton. ImageNet Classification with Deep Convolutional Neural
       Networks. https://papers.nips.cc/paper/4824
[2014] Krizhevsky. One weird trick for parallelizing convolutional neural networks.
       https://arxiv.org/abs/1404.5997

What differs from [2012], with its section:
- 3.2: one tower, as in [2014]. In [2012], which splits the network over two GPUs, conv2, conv4 and
  conv5 see the feature maps of their own GPU only.
- 3.5: 64, 192, 384, 256 and 256 filters, as in cuda-convnet2, the author's code, and torchvision.
  [2012] has 96, 256, 384, 384 and 256; [2014] has 384 in conv4.
- 3.5: conv1 pads by 2, which gives the 55 x 55 outputs of figure 2. [2012] states no padding.
- 3.3: no response normalization.
- 3.5: adaptive average pooling to 6 x 6 before fc1, which lets the network take images of any size
  from 63 x 63. At 224 x 224, it changes nothing.
- 5: uniform weights of variance 1 / fan_in, and biases of 0. [2012] has normal weights of standard
  deviation 0.01, and biases of 1 in conv2, conv4, conv5, fc1 and fc2.

Dropout follows fc1 and fc2, as in [2012], 4.2. In torchvision, it precedes them.
"""

import argparse
import math
from typing import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

# torchvision's official ImageNet weights (IMAGENET1K_V1): 56.522% top-1 accuracy
WEIGHTS_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"

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


class AlexNet(nn.Module):
    """Five convolutions and three fully connected layers: by default 61,100,840 parameters."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(64, 192, kernel_size=5, padding=2)
        self.conv3 = nn.Conv2d(192, 384, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(384, 256, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(256, 256, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)  # overlapping windows ([2012], 3.4)
        self.fc1 = nn.Linear(256 * 6 * 6, 4096)
        self.fc2 = nn.Linear(4096, 4096)
        self.fc3 = nn.Linear(4096, num_classes)
        self.dropout = nn.Dropout(dropout)

        # PyTorch's weights have variance 1 / (3 fan_in). Times sqrt(3), it is 1 / fan_in. With a
        # smaller one (PyTorch's, or the 0.01^2 of [2012], section 5), the initial logits hardly
        # depend on the image. With 2 / fan_in, the loss starts far too high.
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:  # the weight of a convolution or a linear layer
                    parameter.mul_(math.sqrt(3))
                else:  # its bias
                    parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, H, W), 63 x 63 or larger, to logits (N, num_classes).

        The shapes below are for 224 x 224 images.
        """
        x = F.relu(self.conv1(x))  # (N, 64, 55, 55)
        x = self.pool(x)  # (N, 64, 27, 27)
        x = F.relu(self.conv2(x))  # (N, 192, 27, 27)
        x = self.pool(x)  # (N, 192, 13, 13)
        x = F.relu(self.conv3(x))  # (N, 384, 13, 13)
        x = F.relu(self.conv4(x))  # (N, 256, 13, 13)
        x = F.relu(self.conv5(x))  # (N, 256, 13, 13)
        x = self.pool(x)  # (N, 256, 6, 6)
        x = F.adaptive_avg_pool2d(x, 6)  # (N, 256, 6, 6), for any image size
        x = torch.flatten(x, 1)  # (N, 9216)
        x = self.dropout(F.relu(self.fc1(x)))  # (N, 4096)
        x = self.dropout(F.relu(self.fc2(x)))  # (N, 4096)
        x = self.fc3(x)  # (N, num_classes)
        return x

    @classmethod
    def from_pretrained(cls, dropout: float = 0.5) -> "AlexNet":
        """Build the network with torchvision's official ImageNet weights.

        The first call downloads 244 MB to `torch.hub.get_dir()`/checkpoints, by default
        ~/.cache/torch/hub/checkpoints. Later calls read the file there.

        Raises:
            urllib.error.URLError: the weights cannot be downloaded.
            RuntimeError: the downloaded file does not match the hash in its name.
        """
        state_dict = torch.hub.load_state_dict_from_url(
            WEIGHTS_URL, map_location="cpu", check_hash=True, weights_only=True
        )
        return cls.from_state_dict(state_dict, dropout)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], dropout: float = 0.5) -> "AlexNet":
        """Build the network from a state_dict with this file's or torchvision's parameter names.

        The numbers of classes and of input channels are those of the tensors.

        Raises:
            RuntimeError: a tensor is missing, unexpected or of another shape.
        """
        weights = {}
        for name, tensor in state_dict.items():
            layer, dot, kind = name.rpartition(".")  # "features.0", ".", "weight"
            weights[TORCHVISION_NAMES.get(layer, layer) + dot + kind] = tensor

        for name, dimensions in (("fc3.weight", 2), ("conv1.weight", 4)):
            found = weights.get(name)
            if not isinstance(found, Tensor) or found.dim() != dimensions:
                raise RuntimeError(
                    f"AlexNet needs a tensor {name} with {dimensions} dimensions. The first names "
                    f"here are {', '.join(list(state_dict)[:5]) or 'none'}. If this is a training "
                    'file, pass the state_dict in it: torch.load(file)["state_dict"], for example.'
                )
        model = cls(
            num_classes=weights["fc3.weight"].shape[0],
            in_channels=weights["conv1.weight"].shape[1],
            dropout=dropout,
        )
        model.load_state_dict(weights)
        return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print AlexNet and run a forward pass.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device

    model = AlexNet().to(device).eval()
    images = torch.randn(1, 3, 224, 224, device=device)
    with torch.inference_mode():
        logits = model(images)

    print(model)
    print(f"Parameters: {sum(parameter.numel() for parameter in model.parameters()):,}")
    print(f"Forward pass on {device}: {tuple(images.shape)} -> {tuple(logits.shape)}")

#!/usr/bin/env bash
# fastai: the body of a network whose forward calls functions is silently another network.
#
# create_body, and so unet_learner and vision_learner, cut a network by putting its child modules
# into a Sequential. What `forward` does besides, such as F.relu, is lost without an error.
#
# Seen on 2026-11-27 with fastai 2.8.12, torch 2.14.1, torchvision 0.29.1, Python 3.11, Linux:
#   smallest feature: 0.00 in the network, -1.44 in its body
#   layers of the body: Conv2d Conv2d
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet \
    fastai==2.8.12 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 # PyTorch with CUDA: 6 GB

"$folder/bin/python" - <<'PYTHON'
import torch
import torch.nn.functional as F
from fastai.vision.learner import create_body


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3)
        self.conv2 = torch.nn.Conv2d(8, 8, 3)
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.fc = torch.nn.Linear(8, 10)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.features(x)).flatten(1))


torch.manual_seed(0)
network = Network().eval()
images = torch.randn(4, 3, 16, 16)
body = create_body(network, pretrained=False).eval()  # cuts before the pooling, as it should
expected, actual = network.features(images), body(images)
print(f"smallest feature: {expected.min():.2f} in the network, {actual.min():.2f} in its body")
print("layers of the body:", *(type(layer).__name__ for layer in body))
assert actual.shape == expected.shape
assert expected.min() == 0 and actual.min() < -0.1, "the body has its ReLUs now"
PYTHON

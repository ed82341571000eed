#!/usr/bin/env bash
# captum: LRP gives values of 10^12 for torchvision's ResNet-18, without an error.
#
# The blocks of this network call one ReLU module twice. captum's DeepLift refuses it with an error
# that says so. LRP does not refuse it: its values, which should be about as large as the logit, are
# 10^12 times as large.
#
# Seen on 2026-11-27 with captum 0.9.0, torch 2.14.1, torchvision 0.29.1, Python 3.11, Linux:
#   largest logit: 0.76
#   LRP, largest value: 2.5e+12
#   DeepLift: RuntimeError: A Module ReLU() was detected that does not contain some of the input
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet \
    captum==0.9.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 # PyTorch with CUDA: 6 GB

"$folder/bin/python" - <<'PYTHON'
import torch
import torchvision
from captum.attr import LRP, DeepLift

torch.manual_seed(0)
network = torchvision.models.resnet18().eval()
for module in network.modules():
    if isinstance(module, torch.nn.ReLU):
        module.inplace = False  # captum asks for this
images = torch.randn(4, 3, 64, 64)

logit = network(images)[:, 0].abs().max().item()
relevance = LRP(network).attribute(images, target=0).abs().max().item()
print(f"largest logit: {logit:.2g}")
print(f"LRP, largest value: {relevance:.2g}")
try:
    DeepLift(network).attribute(images, target=0)
except RuntimeError as error:
    print(f"DeepLift: RuntimeError: {error}"[:100])
else:
    raise AssertionError("DeepLift works now")
assert relevance > 1e6 * logit, "LRP gives values of a plausible size now"
PYTHON

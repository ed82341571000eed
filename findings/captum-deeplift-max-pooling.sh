#!/usr/bin/env bash
# captum: DeepLIFT does not add up in a network that has both max pooling and a ReLU.
#
# DeepLIFT's values should sum to the output for the input minus the output for the baseline. captum
# has a rule for each of the two layers, and the sum is right where only one of them is used. With
# both, it is off by as much as the output changes, without a warning.
#
# Seen on 2026-11-27 with captum 0.9.0, torch 2.13.0, Python 3.11, Linux, x86-64:
#   ReLU, max pooling: 1.0e+00
#   max pooling, ReLU: 5.8e-02
#   max pooling: 3.5e-07
#   ReLU, average pooling: 1.9e-07
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet captum==0.9.0 torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch
from captum.attr import DeepLift
from torch import nn


def error(*layers: nn.Module) -> float:
    """Return the largest error of the sums, relative to the largest change of the output."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.Linear(4 * 9, 1)).eval()
    inputs, baselines = torch.randn(16, 1, 8, 8), torch.randn(16, 1, 8, 8)
    _, delta = DeepLift(network).attribute(
        inputs, baselines, target=0, return_convergence_delta=True
    )
    change = (network(inputs) - network(baselines)).abs().max()
    return (delta.abs().max() / change).item()


errors = {
    "ReLU, max pooling": error(nn.ReLU(), nn.MaxPool2d(2)),
    "max pooling, ReLU": error(nn.MaxPool2d(2), nn.ReLU()),
    "max pooling": error(nn.MaxPool2d(2)),
    "ReLU, average pooling": error(nn.ReLU(), nn.AvgPool2d(2)),
}
for name, value in errors.items():
    print(f"{name}: {value:.1e}")
relu_first, pooling_first, *others = errors.values()
assert min(relu_first, pooling_first) > 0.01
assert max(others) < 1e-4
PYTHON

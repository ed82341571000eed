#!/usr/bin/env bash
# calflops: after one error, every later count in the same process is twice the truth.
#
# It replaces PyTorch's functions while it counts. Its replacement of adaptive_avg_pool2d does not
# know the argument `output_size` by keyword, although PyTorch's own function does, and raises a
# TypeError. The replacements then stay, and the next count adds a second set (after two errors, a
# third).
#
# Seen on 2026-11-27 with calflops 0.3.2, torch 2.13.0, Python 3.11, Linux, x86-64:
#   before: 1000 multiply-adds
#   TypeError: _pool_flops_compute() got an unexpected keyword argument 'output_size'
#   after: 2000 multiply-adds
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet \
    calflops==0.3.2 transformers==5.24.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch
from calflops import calculate_flops


class Pooled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(self.conv(x), output_size=1)


def count(network: torch.nn.Module, shape: tuple) -> int:
    _, multiply_adds, _ = calculate_flops(
        network, shape, print_results=False, print_detailed=False, output_as_string=False
    )
    return multiply_adds


linear = torch.nn.Sequential(torch.nn.Linear(100, 10))
before = count(linear, (1, 100))
print(f"before: {before} multiply-adds")
try:
    count(Pooled(), (1, 3, 8, 8))
except TypeError as error:
    print(f"TypeError: {error}")
else:
    raise AssertionError("calflops takes output_size by keyword now")
after = count(linear, (1, 100))
print(f"after: {after} multiply-adds")
assert (before, after) == (1000, 2000)
PYTHON

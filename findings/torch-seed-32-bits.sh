#!/usr/bin/env bash
# PyTorch: the generator of the CPU uses the lower 32 bits of a seed only.
#
# `torch.manual_seed` takes 64 bits, and `torch.initial_seed()` returns all of them. Seeds that
# differ in the upper half, such as those made by shifting a run's number to the left, give the same
# random numbers.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   seed           1: initial_seed          1, 0.7576 0.2793
#   seed  4294967297: initial_seed 4294967297, 0.7576 0.2793
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch

numbers = []
for seed in (1, 2**32 + 1):
    torch.manual_seed(seed)
    numbers.append(torch.rand(2))
    first, second = numbers[-1].tolist()
    print(f"seed {seed:11}: initial_seed {torch.initial_seed():10}, {first:.4f} {second:.4f}")
    assert torch.initial_seed() == seed

assert torch.equal(*numbers), "the upper half of the seed is used now"
PYTHON

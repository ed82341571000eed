#!/usr/bin/env bash
# PyTorch: torch.compile(dynamic=True) compiles a graph of its own for batches of 16 and more.
#
# A graph of its own for a batch of 1 is documented. But a convolutional network that was compiled
# for a batch of 4 is compiled again at 16 images, and not at 2, 15 or 64: the first graph is for 2
# to 15 images. Without the convolution, one graph serves all batches from 2 on.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, g++ 12, Linux, x86-64:
#   batches that compile a new graph, with a convolution: 4 1 16
#   batches that compile a new graph, without: 4 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch
from torch._dynamo.utils import counters


def new_graphs(*layers: torch.nn.Module) -> list[int]:
    """Return the batches that compile a new graph."""
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.LazyLinear(10)).eval()
    network(torch.randn(1, 3, 8, 8))
    compiled = torch.compile(network, dynamic=True, fullgraph=True)
    found = []
    for batch_size in (4, 2, 15, 1, 16, 17, 64):
        before = counters["stats"]["unique_graphs"]
        with torch.no_grad():
            compiled(torch.randn(batch_size, 3, 8, 8))
        if counters["stats"]["unique_graphs"] > before:
            found.append(batch_size)
    return found


convolutional, linear = new_graphs(torch.nn.Conv2d(3, 8, 3)), new_graphs()
print("batches that compile a new graph, with a convolution:", *convolutional)
print("batches that compile a new graph, without:", *linear)
assert convolutional == [4, 1, 16]
assert linear == [4, 1]
PYTHON

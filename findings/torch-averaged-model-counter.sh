#!/usr/bin/env bash
# PyTorch: AveragedModel(use_buffers=True) leaves batch norm's num_batches_tracked at 1.
#
# The counter is an integer. The running average `average + (new - average) / (n + 1)` is rounded
# down to the old value each time, so the counter never leaves its first value. Batch norm with
# momentum=None divides by this counter: after loading such weights, the first new batches replace
# most of the running statistics.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   network: 100 batches counted
#   average, use_buffers=True: 1
#   average, use_buffers=False: 100
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch
from torch.optim.swa_utils import AveragedModel


def counters(use_buffers: bool) -> tuple[int, int]:
    """Return how many batches a batch norm has counted, and how many its average."""
    network = torch.nn.Sequential(torch.nn.BatchNorm1d(4)).train()
    averaged = AveragedModel(network, use_buffers=use_buffers)
    for _ in range(100):
        network(torch.randn(8, 4))
        averaged.update_parameters(network)
    return network[0].num_batches_tracked.item(), averaged.module[0].num_batches_tracked.item()


network, with_buffers = counters(use_buffers=True)
_, without_buffers = counters(use_buffers=False)
print(f"network: {network} batches counted")
print(f"average, use_buffers=True: {with_buffers}")
print(f"average, use_buffers=False: {without_buffers}")
assert (network, with_buffers, without_buffers) == (100, 1, 100)
PYTHON

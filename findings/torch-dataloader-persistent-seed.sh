#!/usr/bin/env bash
# PyTorch: `persistent_workers=True` changes the random numbers of the training process.
#
# At the start of each epoch, a DataLoader draws the seed of its workers from the global generator,
# from which dropout draws too. With persistent workers it does so in the first epoch only, so from
# the second one on the same seed gives other dropout. A generator of the loader's own prevents it.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64 (a random number after each epoch):
#   persistent_workers=False 0.2858 0.0601 0.5944
#   persistent_workers=True 0.2858 0.0270 0.4716
#   persistent_workers=False, own generator 0.0043 0.1056 0.2858
#   persistent_workers=True, own generator 0.0043 0.1056 0.2858
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch
from torch.utils.data import DataLoader


def numbers_after_each_epoch(persistent, generator):
    torch.manual_seed(3)
    loader = DataLoader(
        range(4),
        num_workers=1,
        persistent_workers=persistent,
        generator=torch.Generator() if generator else None,
    )
    numbers = []
    for _ in range(3):
        list(loader)
        numbers.append(torch.rand(1).item())
    own = ", own generator" if generator else ""
    print(f"persistent_workers={persistent}{own}", *(f"{number:.4f}" for number in numbers))
    return numbers


new, kept = (numbers_after_each_epoch(persistent, False) for persistent in (False, True))
assert new[0] == kept[0]
assert new[1:] != kept[1:], "both draw the same number of seeds now"

new, kept = (numbers_after_each_epoch(persistent, True) for persistent in (False, True))
assert new == kept
PYTHON

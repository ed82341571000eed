#!/usr/bin/env bash
# PyTorch: fused SGD with momentum ruins the weights on a CPU if a GradScaler skips the first step.
#
# A GradScaler starts with a scale of 65,536. If that makes a gradient infinite, it skips the step
# and halves the scale: this is how it finds its scale. With fused=True, the skipped first step
# leaves a momentum buffer of uninitialized memory behind, and the second step uses it. Nothing is
# raised. fused=False is right.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   not fused: largest weight 0.46
#   fused: largest weight 4.8e+31     (differs from run to run; may be nan)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch


def largest_weight(fused: bool) -> float:
    """Return the largest weight after a skipped step and two more, of weights that start at 1."""
    weights = [torch.nn.Parameter(torch.ones(size)) for size in range(1, 200)]
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=0.9, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    for step in range(3):
        optimizer.zero_grad()
        loss = sum(weight.square().sum() for weight in weights)
        scaler.scale(loss).backward()
        if step == 0:  # as if the scale were too large for float16
            weights[0].grad.fill_(float("inf"))
        scaler.step(optimizer)
        scaler.update()
    return torch.cat([weight.detach() for weight in weights]).abs().max().item()


expected, actual = largest_weight(fused=False), largest_weight(fused=True)
print(f"not fused: largest weight {expected:.2f}")
print(f"fused: largest weight {actual:.2g}")
assert expected < 1
assert not actual < 1, "fused SGD is right now"
PYTHON

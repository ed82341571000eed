#!/usr/bin/env bash
# PyTorch: the norm of a large float32 tensor is 0.25% too small on a CPU.
#
# `Tensor.norm`, `torch.linalg.vector_norm` and therefore `torch.nn.utils.clip_grad_norm_` add the
# squares one after the other in float32, so small squares are lost beside a large sum.
# `square().sum()` adds in pairs and is exact to seven digits. 37,748,736 values are the weights of
# AlexNet's first fully connected layer.
#
# Seen on 2026-11-27 with torch 2.13.0, Python 3.11, Linux, x86-64:
#   values       norm()      vector_norm()  clip_grad_norm_()  square().sum().sqrt()
#       65,536   -4.0e-07    -4.0e-07       -4.0e-07            2.1e-08
#   37,748,736   -2.5e-03    -2.5e-03       -2.5e-03           -1.1e-08
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import torch

torch.manual_seed(0)
values = torch.nn.Parameter(torch.randn(9216 * 4096))
print("relative errors")
for count in (65_536, values.numel()):
    part = torch.nn.Parameter(values.detach()[:count])
    part.grad = part.detach().clone()
    exact = part.double().norm()
    norms = [
        part.norm(),
        torch.linalg.vector_norm(part),
        torch.nn.utils.clip_grad_norm_([part], max_norm=1e9),
        part.square().sum().sqrt(),
    ]
    errors = [(norm / exact - 1).item() for norm in norms]
    print(f"{count:>12,}", *(f"{error:10.1e}" for error in errors))

*sequential, pairwise = errors  # of all values
assert all(-0.01 < error < -0.001 for error in sequential), "norms are more exact now"
assert abs(pairwise) < 1e-6
PYTHON

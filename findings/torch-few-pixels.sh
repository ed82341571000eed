#!/usr/bin/env bash
# PyTorch: on an Intel CPU, a convolution with a few output pixels is faster as a matrix product in Python.
#
# The case is a 3 x 3 convolution of 512 channels on 128 feature maps of 2 x 2 pixels, as in the last
# stage of a ResNet-18 for images of 64 x 64. F.conv2d computes it with oneDNN. F.pad, Tensor.unfold
# and F.linear compute the same, forward and backward, several times as fast.
#
# Seen on 2026-11-28 with torch 2.13.0, Python 3.11, Linux, x86-64, one thread, Intel Xeon with AMX:
#   float32: 1 / 2.9 of the time of F.conv2d, the same gradients
#   bfloat16: 1 / 4.6 of the time of F.conv2d, the same gradients
# On an AMD Zen 4 with AVX512-BF16, the matrix product is not faster: there this script fails.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/bin/python" - <<'PYTHON'
import time

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.manual_seed(0)


def matrix_product(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    rows = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3).flatten(3)
    return F.linear(rows, weight.permute(0, 2, 3, 1).flatten(1)).permute(0, 3, 1, 2)


def seconds_and_gradients(convolve, maps, weight) -> tuple[float, tuple]:
    times = []
    for _ in range(7):
        start = time.perf_counter()
        output = convolve(maps, weight)
        gradients = torch.autograd.grad(output, (maps, weight), torch.ones_like(output))
        times.append(time.perf_counter() - start)
    return min(times), gradients


for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    maps = torch.randn(128, 512, 2, 2, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(512, 512, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    maps.requires_grad_(), weight.requires_grad_()

    slow, expected = seconds_and_gradients(lambda m, w: F.conv2d(m, w, padding=1), maps, weight)
    fast, gradients = seconds_and_gradients(matrix_product, maps, weight)
    for gradient, other in zip(gradients, expected):
        assert (gradient - other).float().norm() < tolerance * other.float().norm()
    name = str(dtype).removeprefix("torch.")
    print(f"{name}: 1 / {slow / fast:.1f} of the time of F.conv2d, the same gradients")
    assert slow > 1.5 * fast
PYTHON

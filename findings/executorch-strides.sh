#!/usr/bin/env bash
# ExecuTorch: the Python runtime reads a permuted tensor in the order of its memory, without an error.
#
# torchvision's `pil_to_tensor` and `to(memory_format=torch.channels_last)` make such tensors. PyTorch
# gives the same result for them as for a contiguous copy.
#
# Seen on 2026-11-27 with executorch 1.5.1, torch 2.13.0, Python 3.11, Linux, x86-64:
#   PyTorch:                [1.0, 5.0, 9.0, 13.0, 17.0, 21.0]
#   ExecuTorch, contiguous: [1.0, 5.0, 9.0, 13.0, 17.0, 21.0]
#   ExecuTorch, permuted:   [4.0, 9.0, 14.0, 8.0, 13.0, 18.0]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet executorch==1.5.1 torch==2.13.0

cd "$folder"
"$folder/bin/python" - <<'PYTHON' 2>"$folder/warnings"
from pathlib import Path

import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime


class Rows(torch.nn.Module):
    """The sums over the columns of images (N, C, H, W)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.sum(dim=3)


images = torch.arange(12.0).view(1, 3, 2, 2)
program = to_edge_transform_and_lower(torch.export.export(Rows(), (images,))).to_executorch()
Path("rows.pte").write_bytes(program.buffer)
method = Runtime.get().load_program("rows.pte").load_method("forward")

view = images.to(memory_format=torch.channels_last)
assert torch.equal(view, images)
pytorch = Rows()(view).flatten().tolist()
contiguous = method.execute([images])[0].flatten().tolist()
permuted = method.execute([view])[0].flatten().tolist()
print("PyTorch:               ", pytorch)
print("ExecuTorch, contiguous:", contiguous)
print("ExecuTorch, permuted:  ", permuted)
assert contiguous == pytorch
assert permuted != pytorch
PYTHON

#!/usr/bin/env bash
# torchao: PT2E quantization for x86 refuses a residual block that calls one ReLU module twice.
#
# torch.export gives the same graph for one module that is called twice as for two modules, except
# for the module that it notes at each operation. The quantizer goes by that note and raises. The
# blocks of torchvision's ResNets are such blocks. The message does not name the module.
#
# Seen on 2026-11-27 with torchao 0.18.0, torch 2.13.0, Python 3.11, Linux, x86-64:
#   two ReLU modules: quantized
#   one ReLU module, called twice: ValueError: Input partition has more than one output node
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torchao==0.18.0 torch==2.13.0 numpy==2.4.6

"$folder/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)


class Block(nn.Module):
    def __init__(self, one_relu: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.relu2 = nn.ReLU()
        self.one_relu = one_relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.relu1(self.conv1(x)))
        return (self.relu1 if self.one_relu else self.relu2)(out + x)


def quantize(block: nn.Module) -> str:
    images = torch.randn(2, 4, 8, 8)
    config = get_default_x86_inductor_quantization_config()
    with torch.no_grad():
        program = torch.export.export(block.eval(), (images,)).module()
        try:
            prepared = prepare_pt2e(program, X86InductorQuantizer().set_global(config))
        except ValueError as error:
            return f"ValueError: {error}"
        prepared(images)
        convert_pt2e(prepared)(images)
    return "quantized"


two, one = quantize(Block(one_relu=False)), quantize(Block(one_relu=True))
print(f"two ReLU modules: {two}")
print(f"one ReLU module, called twice: {one}")
assert two == "quantized"
assert one == "ValueError: Input partition has more than one output node"
PYTHON

"""Precisions, layouts and devices: what changes with them is rounding and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.oracle import deviation

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
ROUNDING = {torch.float16: 0.02, torch.bfloat16: 0.1}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_logits_in_half_precision_differ_by_rounding_only(model, dtype, device):
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        logits = copy.deepcopy(model).to(device, dtype)(images.to(device, dtype)).cpu()
        assert 0 < deviation(logits.float(), model(images)) <= ROUNDING[dtype]


def test_channels_last_computes_the_same(model):
    images = torch.randn(4, 3, 96, 64)
    with torch.no_grad():
        tiled = copy.deepcopy(model).to(memory_format=torch.channels_last)
        logits = tiled(images.to(memory_format=torch.channels_last))
        assert deviation(logits, model(images)) <= 1e-5

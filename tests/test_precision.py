"""Precisions and devices: what changes with them is rounding and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.oracle import MODELS, deviation

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
ROUNDING = {torch.float64: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ROUNDING)
def test_logits_in_another_precision_differ_by_rounding_only(model, dtype, device):
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        logits = copy.deepcopy(model).to(device, dtype)(images.to(device, dtype)).cpu()
        assert 0 < deviation(logits.float(), model(images)) <= ROUNDING[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_under_autocast_differ_by_rounding_only(model, dtype, device):
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad(), torch.autocast(device, dtype=dtype):
        logits = copy.deepcopy(model).to(device)(images.to(device)).cpu()
    assert logits.dtype == dtype
    assert 0 < deviation(logits.float(), model(images)) <= ROUNDING[dtype]


def test_channels_last_computes_the_same(model):
    images = torch.randn(4, 3, 96, 64)
    with torch.no_grad():
        tiled = copy.deepcopy(model).to(memory_format=torch.channels_last)
        logits = tiled(images.to(memory_format=torch.channels_last))
        assert deviation(logits, model(images)) <= 1e-5


@CUDA
def test_model_moves_to_cuda_and_back(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds: 5e-3 off
    images, moved = torch.randn(4, 3, 64, 64), copy.deepcopy(model).cuda()
    assert deviation(moved(images.cuda()).cpu(), model(images)) <= 1e-4
    torch.save(moved.state_dict(), tmp_path / "cuda.pth")
    weights = torch.load(tmp_path / "cuda.pth", map_location="cpu", weights_only=True)
    for other in (moved.cpu(), MODELS[name].from_state_dict(weights).eval()):
        assert torch.equal(other(images), model(images))

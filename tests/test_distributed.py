"""Two processes with half of a batch each compute the gradients of one with all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.fsdp
import torch.nn.functional as F

from tests.oracle import MODELS, deviation, oracle

HEADINGS = ["DistributedDataParallel"]
if hasattr(torch.distributed.fsdp, "fully_shard"):  # since torch 2.6
    HEADINGS.append("FSDP2")


@pytest.fixture(scope="session")
def inputs():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([3, 1, 4, 1])
    return {name: (oracle(name, num_classes=5).state_dict(), images, labels) for name in MODELS}


@pytest.fixture(scope="session")
def folder(inputs, tmp_path_factory):
    """The folder where two processes have left their gradients, a file for each recipe."""
    folder = tmp_path_factory.mktemp("gradients")
    torch.save(inputs, folder / "inputs")
    command = [sys.executable, "-m", "tests.two_processes", str(folder), *HEADINGS]
    subprocess.run(command, cwd=Path(__file__).parent.parent, timeout=90, check=True)
    return folder


@pytest.mark.parametrize("heading", HEADINGS)
def test_gradients_equal_those_of_one_process(name, inputs, folder, heading):
    weights, images, labels = inputs[name]
    model = MODELS[name].from_state_dict(weights).eval()
    F.cross_entropy(model(images), labels).backward()
    gradients = torch.load(folder / f"{name} {heading}", weights_only=True)
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, key
        assert deviation(gradients[key], parameter.grad) <= 1e-4, key

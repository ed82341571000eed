from __future__ import annotations

import contextlib
import ctypes

import pytest
import torch
from torch import nn

from tests.oracle import MODELS, oracle

with contextlib.suppress(AttributeError, OSError, TypeError):  # the C library is not glibc
    # Keep and reuse the memory of large tensors: clearing pages takes a tenth of the time.
    ctypes.CDLL(None).mallopt(-1, -1)  # M_TRIM_THRESHOLD: return none to the operating system
    ctypes.CDLL(None).mallopt(-4, 0)  # M_MMAP_MAX: put large tensors on the heap too


@pytest.fixture(scope="session", params=MODELS)
def name(request) -> str:
    """The name of a network; a test that asks for it runs for both."""
    return request.param


@pytest.fixture(scope="session")
def expected_model(name) -> nn.Module:
    """The network as torchvision has it, with random weights, in evaluation mode."""
    return oracle(name).eval()


@pytest.fixture(scope="session")
def model(name, expected_model) -> nn.Module:
    """Our network with the weights of `expected_model`, in evaluation mode."""
    return MODELS[name].from_state_dict(expected_model.state_dict()).eval()


@pytest.fixture
def empty(name) -> nn.Module:
    """A new network without memory or numbers: it has shapes only."""
    with torch.device("meta"):
        return MODELS[name]().eval()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)

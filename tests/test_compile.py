"""Compilers and tracers see each network as one graph that computes what the network does.

Export, ONNX and feature extraction are recipes, and in `tests/docs/test_recipes.py`.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.oracle import deviation


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def test_dynamic_compilation_makes_one_graph_for_all_batch_sizes(model):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for batch_size in (4, 2, 7, 15):  # PyTorch itself compiles anew for 1 and above 15
        images = torch.randn(batch_size, 3, 64, 64)
        assert deviation(compiled(images), model(images)) <= 1e-5
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("aot_eager", marks=pytest.mark.extended),
        pytest.param("inductor", marks=pytest.mark.slow),
    ],
)
def test_compiled_logits_and_gradients_equal_eager(name, model, backend):
    models = [copy.deepcopy(model).double().train() for _ in range(2)]  # so that no ReLU flips
    if name == "alexnet":
        for model in models:
            model.dropout.p = 0
    compiled = torch.compile(models[1], backend=backend, fullgraph=True)
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    expected, logits = models[0](images), compiled(images)
    assert deviation(logits, expected) <= 1e-9
    for output in (expected, logits):
        output.square().mean().backward()
    for (key, parameter), twin in zip(models[0].named_parameters(), models[1].parameters()):
        assert deviation(twin.grad, parameter.grad) <= 1e-9, key
    for (key, buffer), twin in zip(models[0].named_buffers(), models[1].buffers()):
        assert deviation(twin, buffer) <= 1e-9, key


def pickled(model):
    if torch.__version__ < "2.5":
        pytest.skip("torch 2.4 cannot pickle what it traced where annotations are strings")
    return pickle.loads(pickle.dumps(torch.fx.symbolic_trace(model)))


@pytest.mark.parametrize(
    "trace",
    [
        torch.fx.symbolic_trace,
        pickled,
        torch.jit.script,
        lambda model: torch.jit.trace(model, torch.randn(3, 3, 72, 72)),
    ],
    ids=["fx", "fx, pickled", "jit.script", "jit.trace"],
)
def test_traced_network_computes_the_same(model, trace):
    traced = trace(model)
    for height, width in ((64, 64), (80, 100)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            assert deviation(traced(images), model(images)) <= 1e-5

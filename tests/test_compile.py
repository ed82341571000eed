"""Compilers and tracers see each network as one graph that computes what the network does."""

from __future__ import annotations

import importlib
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx import symbolic_trace
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor

from tests.oracle import deviation

LAST_FEATURES = {"alexnet": "conv5", "resnet18": "layer4"}


@pytest.fixture
def expect_the_same(model):
    """Return a function that compares a network with ours, at a size that no trace has seen."""

    def compare(network: nn.Module) -> None:
        images = torch.randn(2, 3, 64, 80)
        with torch.no_grad():
            assert deviation(network(images), model(images)) <= 1e-5

    return compare


def test_one_graph_is_compiled_for_batches_of_2_to_15(model):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for batch_size in (4, 2, 15):  # PyTorch itself compiles anew for 1 and above 15
        images = torch.randn(batch_size, 3, 64, 64)
        torch._dynamo.mark_dynamic(images, 0)
        with torch.no_grad():
            assert deviation(compiled(images), model(images)) <= 1e-5
    assert counter.frame_count == 1


TRACES = {
    "fx": symbolic_trace,
    "fx, jit.script": lambda model: torch.jit.script(symbolic_trace(model)),
    "jit.script": torch.jit.script,
    "jit.trace": lambda model: torch.jit.trace(model, torch.randn(3, 3, 72, 72), check_trace=False),
}


@pytest.mark.filterwarnings("ignore:The TorchScript type system")
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_traced_or_scripted_network_computes_the_same(model, trace, expect_the_same):
    expect_the_same(trace(model))


@pytest.mark.filterwarnings("ignore:The TorchScript type system")
def test_network_fused_by_fx_can_be_scripted(model, expect_the_same):
    fused = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    expect_the_same(torch.jit.script(fused))


def test_feature_extractor_can_be_scripted(name, model):
    layer = LAST_FEATURES[name]
    scripted = torch.jit.script(create_feature_extractor(model, [layer]))
    images, expected = torch.randn(2, 3, 64, 64), []
    handle = getattr(model, layer).register_forward_hook(lambda *args: expected.append(args[-1]))
    with torch.no_grad():
        model(images)
        handle.remove()
        assert deviation(scripted(images)[layer], *expected) <= 1e-5


def test_network_without_memory_computes_shapes_and_takes_weights(empty, model, expect_the_same):
    assert empty(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)
    empty.load_state_dict(model.state_dict(), assign=True)
    expect_the_same(empty)


@pytest.mark.parametrize("trace", [lambda model: model, symbolic_trace], ids=["plain", "fx"])
def test_network_can_be_pickled(empty, model, trace, expect_the_same):
    again = pickle.loads(pickle.dumps(trace(empty)))
    again.load_state_dict(model.state_dict(), assign=True)
    expect_the_same(again)


@pytest.mark.filterwarnings("ignore:Was not able to save", "ignore:You are using `torch.load`")
def test_code_that_fx_writes_to_a_folder_can_be_imported(
    name, empty, model, expect_the_same, tmp_path, monkeypatch
):
    symbolic_trace(empty).to_folder(tmp_path / f"written_{name}", "Written")
    monkeypatch.syspath_prepend(tmp_path)
    with torch.device("meta"):
        written = importlib.import_module(f"written_{name}").Written().eval()
    written.load_state_dict(model.state_dict(), assign=True)
    expect_the_same(written)


FUNCTIONS = [
    (torch, "flatten"),
    (torch.nn.functional, "relu"),
    (torch.nn.functional, "adaptive_avg_pool2d"),
]


def test_functions_are_called_by_position_as_counters_and_quantization_need(model, monkeypatch):
    """The counters of calflops and DeepSpeed take no keyword `output_size`.

    FX quantization knows torch.flatten, but not the method of a tensor.
    """
    called = []

    def watch(module, function_name):
        function = getattr(module, function_name)

        def call(*arguments):  # no keywords
            called.append(function_name)
            return function(*arguments)

        monkeypatch.setattr(module, function_name, call)

    for module, function_name in FUNCTIONS:
        watch(module, function_name)
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    assert set(called) == {function_name for _, function_name in FUNCTIONS}

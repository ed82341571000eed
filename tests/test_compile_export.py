"""Compilers and tracers see each network as one graph that computes what the network does.

`torch.export`, ONNX and `create_feature_extractor` with their recipes are in `test_recipes.py`.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.oracle import deviation

# The output of each row of the two tables in the README, for 224 x 224 images.
SHAPES = {
    "alexnet": {
        "conv1": (64, 55, 55),
        "pool": (64, 27, 27),
        "conv2": (192, 27, 27),
        "pool_1": (192, 13, 13),
        "conv3": (384, 13, 13),
        "conv4": (256, 13, 13),
        "conv5": (256, 13, 13),
        "pool_2": (256, 6, 6),
        "fc1": (4096,),
        "fc2": (4096,),
        "fc3": (1000,),
    },
    "resnet18": {
        "conv1": (64, 112, 112),
        "maxpool": (64, 56, 56),
        "layer1": (64, 56, 56),
        "layer2": (128, 28, 28),
        "layer3": (256, 14, 14),
        "layer4": (512, 7, 7),
        "avgpool": (512, 1, 1),
        "fc": (1000,),
    },
}


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def test_batch_sizes_share_one_graph(model):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    for batch_size in (4, 2, 7, 15):  # PyTorch itself compiles anew for 1 and above 15
        images = torch.randn(batch_size, 3, 64, 64)
        assert deviation(compiled(images), model(images)) <= 1e-5
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
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


def test_features_have_the_documented_shapes(name, model):
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    extractor = extraction.create_feature_extractor(model, list(SHAPES[name]))
    with torch.no_grad():
        features = extractor(torch.randn(2, 3, 224, 224))
    assert {key: tuple(value.shape[1:]) for key, value in features.items()} == SHAPES[name]


@pytest.mark.parametrize("how", ["once", "twice", "copied", "pickled"])
def test_a_traced_network_computes_the_same_and_refuses_the_same(model, how):
    traced = torch.fx.symbolic_trace(model)
    if how == "twice":
        traced = torch.fx.symbolic_trace(traced)
    if how == "copied":
        traced = copy.deepcopy(traced)
    if how == "pickled":
        if torch.__version__ < "2.5":
            pytest.skip("torch 2.4 cannot pickle what it traced where annotations are strings")
        traced = pickle.loads(pickle.dumps(traced))
    for size in (64, 80):
        images = torch.randn(2, 3, size, size)
        assert torch.equal(traced(images), model(images))
    for bad in (images[0], images[:, :1], images.double()):
        with pytest.raises((ValueError, TypeError)) as expected:
            model(bad)
        with pytest.raises(expected.type) as refusal:
            traced(bad)
        assert str(refusal.value) == str(expected.value)

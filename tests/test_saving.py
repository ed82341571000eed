"""A network can be kept and given away in every way that PyTorch has.

`torch.save` of a state_dict and safetensors are recipes, and in `test_recipes.py`.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests.oracle import MODELS


def saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved_whole]
)
def test_a_duplicate_is_equal_and_shares_nothing(model, duplicate):
    images = torch.randn(2, 3, 64, 64)
    expected = model(images)
    other = duplicate(model)
    assert torch.equal(other(images), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("how", ["built", "from_state_dict", "from channels-last"])
def test_every_tensor_is_contiguous_and_has_memory_of_its_own(name, model, how):
    tensors, sources = MODELS[name](num_classes=10).state_dict(), {}
    if how != "built":
        sources = model.state_dict()
        if how == "from channels-last":
            sources = copy.deepcopy(model).to(memory_format=torch.channels_last).state_dict()
        tensors = MODELS[name].from_state_dict(sources).state_dict()
    assert [key for key, tensor in tensors.items() if not tensor.is_contiguous()] == []
    everything = [*tensors.values(), *sources.values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in everything}) == len(everything)

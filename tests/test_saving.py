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
    if how == "built":
        model = MODELS[name](num_classes=10)
    else:
        model = copy.deepcopy(model)
        if how == "from channels-last":
            model = model.to(memory_format=torch.channels_last)
        model = MODELS[name].from_state_dict(model.state_dict())
    tensors = list(model.state_dict().values())
    assert all(tensor.is_contiguous() for tensor in tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)

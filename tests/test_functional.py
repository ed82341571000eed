"""`torch.func` takes a network as a function of its parameters.

Per-sample gradients are a recipe, tested in `tests/docs/test_recipes.py`.
"""

from __future__ import annotations

import copy

import torch
from torch.func import functional_call


def test_functional_call_uses_the_parameters_it_is_given(model):
    images = torch.randn(2, 3, 64, 64)
    other = copy.deepcopy(model)
    for tensor in (*other.parameters(), *other.buffers()):
        if tensor.is_floating_point():
            tensor.data *= 1.1
    before, expected = model(images), other(images)
    assert torch.equal(functional_call(model, other.state_dict(), (images,)), expected)
    assert not torch.equal(before, expected)
    assert torch.equal(model(images), before)

"""`torch.func` and checkpointing see a network as a function of its parameters.

`vmap` over models and per-sample gradients are recipes, and in `tests/docs/test_recipes.py`.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, jvp
from torch.utils.checkpoint import checkpoint

from tests.oracle import deviation


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


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(model, reentrant):
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    gradients = []
    for forward in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
        loss = forward(images).square().mean()
        model.zero_grad()
        images.grad = None
        loss.backward()
        gradients.append([images.grad, *(parameter.grad for parameter in model.parameters())])
    model.zero_grad()
    assert all(torch.equal(*pair) for pair in zip(*gradients))


def test_forward_and_reverse_derivatives_agree(model):
    model = copy.deepcopy(model).double()
    images, direction = torch.randn(2, 1, 3, 64, 64, dtype=torch.float64)
    _, forward = jvp(model, (images,), (direction,))
    cotangent = torch.randn_like(forward)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(model(images), images, cotangent)
    assert deviation((gradient * direction).sum(), (forward * cotangent).sum()) <= 1e-10

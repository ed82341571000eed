"""With the same weights, both networks compute what torchvision's compute."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.oracle import MODELS, deviation, oracle

SIZES = {
    "alexnet": [(63, 63), (224, 224), (63, 200), (200, 64)],
    "resnet18": [(32, 32), (224, 224), (65, 200), (200, 64)],
}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_equal_torchvision(name, model, expected_model, dtype, tolerance):
    model, expected_model = (copy.deepcopy(m).to(dtype) for m in (model, expected_model))
    for height, width in SIZES[name]:
        images = torch.randn(2, 3, height, width, dtype=dtype)
        with torch.inference_mode():
            logits, expected = model(images), expected_model(images)
        assert deviation(logits, expected) <= tolerance, (height, width)


@pytest.mark.parametrize("name, options", [("alexnet", {"dropout": 0}), ("resnet18", {})])
def test_a_training_step_equals_torchvision(name, options):
    """The loss, every gradient and the batch-norm statistics, with dropout at 0."""
    expected_model = oracle(name, num_classes=10, **options)
    model = MODELS[name].from_state_dict(expected_model.state_dict()).double().train()
    expected_model.double().train()
    if name == "alexnet":
        model.dropout.p = 0
    images = torch.randn(4, 3, 96, 96, dtype=torch.float64)
    labels = torch.tensor([3, 1, 4, 1])
    loss, expected_loss = (F.cross_entropy(m(images), labels) for m in (model, expected_model))
    loss.backward()
    expected_loss.backward()

    assert deviation(loss, expected_loss) <= 1e-12
    for (key, parameter), expected in zip(model.named_parameters(), expected_model.parameters()):
        assert parameter.grad.abs().max() > 0, key
        assert deviation(parameter.grad, expected.grad) <= 1e-10, key
    for (key, buffer), expected in zip(model.named_buffers(), expected_model.buffers()):
        assert deviation(buffer, expected) <= 1e-12, key

"""With the same weights, both networks compute what torchvision's compute."""

from __future__ import annotations

import copy

import torch

from tests.oracle import assert_same_training_step, deviation

SIZES = {
    "alexnet": [(63, 63), (224, 224), (227, 227), (63, 200), (320, 101)],
    "resnet18": [(1, 1), (32, 32), (224, 224), (65, 200), (320, 101)],
}


def test_logits_equal_torchvisions_for_images_of_any_size(name, model, expected_model):
    for height, width in SIZES[name]:
        images = torch.randn(2, 3, height, width)
        with torch.inference_mode():
            logits, expected = model(images), expected_model(images)
        assert deviation(logits, expected) <= 1e-5, (height, width)


def test_a_training_step_equals_torchvisions(model, expected_model):
    """The loss, every gradient and the batch-norm statistics, with dropout at 0."""
    ours, theirs = (copy.deepcopy(m).train() for m in (model, expected_model))
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
    assert_same_training_step(ours, theirs, torch.randn(4, 3, 96, 96))

"""No network takes bad images silently, however it is called."""

from __future__ import annotations

import pytest
import torch

BAD = {
    "unbatched": torch.zeros(3, 64, 64),
    "five dimensions": torch.zeros(1, 2, 3, 64, 64),
    "one channel": torch.zeros(2, 1, 64, 64),
    "four channels": torch.zeros(2, 4, 64, 64),
    "channels last in shape": torch.zeros(2, 64, 64, 3),
    "no pixels": torch.zeros(2, 3, 0, 64),
    "bytes": torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
    "float64": torch.zeros(2, 3, 64, 64, dtype=torch.float64),
}
TOO_LOW, TOO_NARROW = torch.zeros(2, 3, 62, 64), torch.zeros(2, 3, 64, 62)


def exported(model):
    batch = {0: torch.export.Dim("batch")}
    return torch.export.export(
        model, (torch.zeros(3, 3, 64, 64),), dynamic_shapes=(batch,)
    ).module()


CALLS = {
    "plain": lambda model: model,
    "fx": torch.fx.symbolic_trace,
    "jit.script": torch.jit.script,
    "jit.trace": lambda model: torch.jit.trace(model, torch.zeros(2, 3, 64, 64)),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "exported": exported,
}


@pytest.mark.parametrize(
    "how",
    ["plain", *(pytest.param(how, marks=pytest.mark.extended) for how in CALLS if how != "plain")],
)
def test_invalid_images_raise(name, model, how):
    torch.compiler.reset()
    network = CALLS[how](model)
    bad = {**BAD, "too low": TOO_LOW, "too narrow": TOO_NARROW} if name == "alexnet" else BAD
    with torch.no_grad():
        network(torch.zeros(2, 3, 64, 64))
        for kind, images in bad.items():
            with pytest.raises((RuntimeError, ValueError, TypeError, AssertionError)):
                network(images)
                pytest.fail(f"{kind} images were taken")


def test_a_value_that_is_not_finite_stays_in_its_own_image(model):
    images = torch.randn(3, 3, 64, 64)
    spoiled = images.clone()
    spoiled[1, 0, 20, 20] = float("nan")
    with torch.no_grad():
        logits, expected = model(spoiled), model(images)
    assert logits[1].isnan().all()
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])

"""Images that a network cannot take are refused, saying what came and what is needed."""

from __future__ import annotations

import re

import pytest
import torch

from tests.oracle import MODELS

BAD = {
    "no batch dimension": (torch.zeros(3, 64, 64), ValueError, "(3, 64, 64)"),
    "one channel": (torch.zeros(2, 1, 64, 64), ValueError, "(2, 1, 64, 64)"),
    "channels last": (torch.zeros(2, 64, 64, 3), ValueError, "(2, 64, 64, 3)"),
    "no pixels": (torch.zeros(2, 3, 0, 64), ValueError, "(2, 3, 0, 64)"),
    "bytes": (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), TypeError, "torch.uint8"),
    "float64": (torch.zeros(2, 3, 64, 64, dtype=torch.float64), TypeError, "torch.float64"),
}
NEEDED = {ValueError: "(N, 3, H, W)", TypeError: "torch.float32"}


@pytest.mark.parametrize("how", ["plain", "traced", "compiled"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_images_are_refused(name, model, bad, how):
    images, error, came = BAD[bad]
    if how == "traced":
        model = torch.fx.symbolic_trace(model)
    if how == "compiled":
        torch.compiler.reset()
        model = torch.compile(model, backend="eager")
    with pytest.raises(error, match=re.escape(came)) as refusal:
        model(images)
    assert NEEDED[error] in str(refusal.value)
    assert str(refusal.value).startswith(MODELS[name].__name__)


@pytest.mark.parametrize("height, width", [(62, 64), (64, 62)])
def test_alexnet_refuses_images_below_63_pixels(height, width):
    with pytest.raises(ValueError, match=rf"63 x 63, got \(1, 3, {height}, {width}\)"):
        MODELS["alexnet"](num_classes=2)(torch.zeros(1, 3, height, width))


def test_an_exported_network_refuses_images_of_another_shape(model):
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(model, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=(batch,))
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(exported.module()(images), model(images), rtol=1e-4, atol=1e-5)
        for bad in (torch.zeros(2, 3, 62, 64), torch.zeros(2, 1, 64, 64), torch.zeros(3, 64, 64)):
            with pytest.raises((AssertionError, RuntimeError), match=r"size|shape"):
                exported.module()(bad)


def test_resnet18_takes_a_single_pixel():
    assert MODELS["resnet18"](num_classes=2).eval()(torch.zeros(1, 3, 1, 1)).shape == (1, 2)


def test_autocast_takes_images_of_half_precision(model):
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model(images.bfloat16()), model(images), rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda d: d.pop("conv1.weight"), "conv1.weight is missing, not torch.float32 (64, 3,"),
        (lambda d: d.update(extra=torch.zeros(2)), "extra is torch.float32 (2,), not expected"),
        (lambda d: d.update({"conv1.weight": torch.zeros(64, 3, 5, 5)}), "(64, 3, 5, 5), not"),
        (lambda d: d.update({"conv1.weight": d["conv1.weight"].char()}), "torch.int8"),
        (lambda d: d.update({"conv1.weight": d["conv1.weight"].double()}), "torch.float32 (64"),
        (lambda d: d.update({"conv1.weight": [1.0]}), "conv1.weight is list, not torch.float32"),
    ],
)
def test_from_state_dict_refuses_a_wrong_checkpoint_by_name(name, model, change, problem):
    state_dict = dict(model.state_dict())
    change(state_dict)
    with pytest.raises(ValueError, match=re.escape(problem)):
        MODELS[name].from_state_dict(state_dict)


def test_from_state_dict_refuses_two_names_for_one_tensor():
    state_dict = MODELS["alexnet"](num_classes=2).state_dict()
    with pytest.raises(ValueError, match="one name for each tensor"):
        MODELS["alexnet"].from_state_dict({**state_dict, "features.0.bias": torch.zeros(64)})


def test_from_state_dict_refuses_the_other_network(name, model):
    other = next(MODELS[other] for other in MODELS if other != name)
    with pytest.raises(ValueError, match=r"not the weights of .*; and \d+ more"):
        other.from_state_dict(model.state_dict())


@pytest.mark.parametrize("checkpoint", [None, [1, 2], "weights.pt"])
def test_from_state_dict_refuses_what_is_no_state_dict(name, checkpoint):
    with pytest.raises(TypeError, match=f"needs a state_dict, got {type(checkpoint).__name__}"):
        MODELS[name].from_state_dict(checkpoint)


def test_autocast_does_not_make_float64_weights_take_float32_images():
    model = MODELS["resnet18"](num_classes=2).double().eval()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"torch\.float64"):
        model(torch.zeros(1, 3, 64, 64))

"""Whatever comes in, a network gives the promised shape or says in its own name what is wrong."""

from __future__ import annotations

import os
import pickle
import re

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from examples.weights import WeightsError, load_file
from tests.oracle import MODELS

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.bool]
SMALLEST = {"alexnet": 63, "resnet18": 1}

anything = settings(
    deadline=None,
    max_examples=30,
    derandomize=True,  # the same examples for everyone
    phases=[Phase.generate],  # a failure is understood as found; to make it smaller takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
pixels = st.integers(0, 9) | st.integers(55, 80)


@anything
@given(
    num_classes=st.integers(1, 2000),
    in_channels=st.integers(1, 5),
    shape=st.lists(st.integers(0, 5) | st.integers(55, 300), min_size=3, max_size=5),
)
def test_any_architecture_gives_the_shape_or_refuses(name, num_classes, in_channels, shape):
    with torch.device("meta"):  # shapes alone are fast
        model = MODELS[name](num_classes=num_classes, in_channels=in_channels).eval()
        images = torch.empty(shape)
    if len(shape) == 4 and shape[1] == in_channels and min(shape[2:]) >= SMALLEST[name]:
        assert model(images).shape == (shape[0], num_classes)
    else:
        with pytest.raises(ValueError, match=f"^{MODELS[name].__name__} needs .*, got ") as refusal:
            model(images)
        assert str(tuple(shape)) in str(refusal.value)


@anything
@given(
    batch_size=st.integers(0, 3),
    channels=st.sampled_from([3, 3, 3, 1, 4]),
    height=pixels,
    width=pixels,
    dtype=st.sampled_from(DTYPES),
    training=st.booleans(),
    autocast=st.booleans(),
)
def test_any_images_give_finite_logits_or_are_refused(
    name, model, batch_size, channels, height, width, dtype, training, autocast
):
    images = (torch.rand(batch_size, channels, height, width) * 255).to(dtype)
    refused = pytest.raises((ValueError, TypeError), match=f"^{MODELS[name].__name__} needs ")
    state = {key: tensor.clone() for key, tensor in model.named_buffers()}
    fits = channels == 3 and min(height, width) >= SMALLEST[name]
    castable = dtype in ((torch.float16, torch.bfloat16) if autocast else ()) + (torch.float32,)
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if not (fits and castable):
                with refused:
                    model(images)
            elif training and name == "resnet18" and batch_size == 1 and max(height, width) <= 32:
                with pytest.raises(ValueError, match="more than 1 value per channel"):
                    model.train()(images)
            else:
                logits = model.train(training)(images)
                assert logits.shape == (batch_size, 1000)
                assert logits.isfinite().all()
    finally:
        model.eval()
        model.load_state_dict(state, strict=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_own_image(model, value):
    images = torch.randn(3, 3, 64, 64)
    spoiled = images.clone()
    spoiled[1, 0, 20, 20] = value
    with torch.no_grad():
        logits, expected = model(spoiled), model(images)
    assert not logits[1].isfinite().all()
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])


HARM = {
    "missing": lambda tensor: None,
    "another shape": lambda tensor: tensor.new_zeros(*tensor.shape, 2),
    "another dtype": lambda tensor: tensor.to(torch.int32),
    "a list": lambda tensor: [0.0],
    "nothing": lambda tensor: (),
}


@anything
@given(data=st.data(), kind=st.sampled_from(sorted(HARM)))
def test_one_wrong_tensor_is_refused_by_name(name, model, data, kind):
    state_dict = dict(model.state_dict())
    key = data.draw(st.sampled_from([k for k in state_dict if "num_batches" not in k]))
    harmed = HARM[kind](state_dict.pop(key))
    if harmed is not None:
        state_dict[key] = harmed
    with pytest.raises(ValueError, match=f"not the weights of .*{re.escape(key)} is "):
        MODELS[name].from_state_dict(state_dict)
    if kind != "another shape":
        state_dict.pop(key, None)
        with pytest.raises(ValueError, match=f"{re.escape(key)} is missing"):
            MODELS[name].from_state_dict(state_dict)


class Code:
    """Where this is unpickled, its code runs and makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


def zipped(content, path):
    torch.save(content, path)


def old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [pickled, zipped, old])
@pytest.mark.parametrize("place", ["instead", "inside", "beside"])
def test_a_file_with_code_is_refused_and_its_code_not_run(tmp_path, place, write):
    path, code = tmp_path / "weights.pth", Code(str(tmp_path / "ran"))
    content = {
        "instead": code,
        "inside": {"conv1.weight": code},
        "beside": {"state_dict": {}, "classes": code},
    }
    write(content[place], path)
    with pytest.raises(WeightsError) as refusal:
        load_file(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert os.listdir(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize(
    "content", [None, [], 3, "weights", {}, {"state_dict": None}, {"state_dict": {"fc.bias": [1]}}]
)
def test_a_file_without_weights_is_refused(tmp_path, content, name):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError) as refusal:
        load_file(tmp_path / "weights.pth", name)
    assert "\n" not in str(refusal.value)

"""`from_state_dict` loads checkpoints of this project, torchvision and timm, and refuses others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.oracle import MODELS, deviation, oracle


@pytest.mark.parametrize("num_classes, in_channels", [(1000, 3), (7, 1)])
@pytest.mark.parametrize("origin", ["torchvision alexnet", "torchvision resnet18", "timm resnet18"])
def test_checkpoints_of_torchvision_timm_and_this_project_load(origin, num_classes, in_channels):
    library, name = origin.split()
    theirs = oracle(name, num_classes=num_classes)
    if in_channels == 1:
        first = theirs.features[0] if name == "alexnet" else theirs.conv1
        first.weight = nn.Parameter(first.weight[:, :1].clone())
        first.in_channels = 1
    if library == "timm":
        timm = pytest.importorskip("timm")
        peer = timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
        peer.load_state_dict(theirs.state_dict())
        theirs = peer
    ours = MODELS[name].from_state_dict(theirs.state_dict())
    again = MODELS[name].from_state_dict(ours.state_dict())
    assert str(ours) == str(MODELS[name](num_classes, in_channels))  # dropout as in a new network
    images = torch.randn(2, in_channels, 64, 64)
    with torch.inference_mode():
        expected = theirs.eval()(images)
        assert expected.shape == (2, num_classes)
        assert deviation(ours.eval()(images), expected) <= 1e-5
        assert torch.equal(again.eval()(images), ours(images))


def test_checkpoints_without_batch_counters_load():
    """Those of PyTorch before 0.4.1, torchvision's own among them."""
    state_dict = oracle("resnet18").state_dict()
    old = {key: state_dict[key] for key in state_dict if not key.endswith("batches_tracked")}
    model = MODELS["resnet18"].from_state_dict(old)
    assert model.bn1.num_batches_tracked == 0
    assert torch.equal(model.bn1.running_mean, state_dict["bn1.running_mean"])


def test_network_is_float32_and_contiguous_for_any_checkpoint(name):
    theirs = oracle(name, num_classes=5).to(torch.bfloat16).to(memory_format=torch.channels_last)
    for parameter in MODELS[name].from_state_dict(theirs.state_dict()).parameters():
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()
        assert parameter.requires_grad


def test_network_shares_no_memory_with_the_checkpoint(name, model):
    checkpoint = model.state_dict()
    tensors = [
        *checkpoint.values(),
        *MODELS[name].from_state_dict(checkpoint).state_dict().values(),
    ]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda d: d.pop("conv1.weight"), "conv1.weight"),
        (lambda d: d.pop("fc3.bias" if "fc3.bias" in d else "fc.bias"), r"fc3?\.bias"),
        (lambda d: d.update(extra=torch.zeros(2)), '"extra"'),
        (lambda d: d.update({"fc4.weight": torch.zeros(2)}), '"fc4.weight"'),
        (lambda d: d.update({"conv1.weight": torch.zeros(64, 3, 5, 5)}), "conv1.weight"),
        (lambda d: d.update({"conv1.weight": torch.zeros(64, 4, 5, 5)}), "conv1.weight"),
        (lambda d: d.update({"conv1.bias": [1.0]}), "conv1.bias"),
        (lambda d: d.clear(), r"fc3?\.weight"),
    ],
)
def test_checkpoint_that_does_not_fit_raises_and_names_a_tensor(name, model, change, named):
    checkpoint = dict(model.state_dict())
    change(checkpoint)
    with pytest.raises(RuntimeError, match=named):
        MODELS[name].from_state_dict(checkpoint)


def test_checkpoint_of_the_other_network_raises_and_names_a_tensor(name, model):
    other = next(MODELS[other] for other in MODELS if other != name)
    with pytest.raises(RuntimeError, match=r"fc3?\.weight"):
        other.from_state_dict(model.state_dict())

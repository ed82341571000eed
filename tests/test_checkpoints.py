"""`from_state_dict` loads checkpoints of this project and of torchvision, and refuses others.

test_cifar_stem.py loads those of kuangliu/pytorch-cifar, and tests/docs/test_peers.py timm's.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from alexnet import AlexNet
from resnet18 import ResNet18
from tests.oracle import MODELS, deviation

HEADS = {"alexnet": "fc3", "resnet18": "fc"}


def test_checkpoints_with_other_classes_and_channels_load(name, expected_model):
    weights = expected_model.state_dict()
    first, *_, head, bias = [key for key in weights if key.endswith(("weight", "bias"))]
    weights[first] = weights[first][:, :1]
    weights[head], weights[bias] = weights[head][:7], weights[bias][:7]
    model = MODELS[name].from_state_dict(weights).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        expected = expected_model(F.pad(images, (0, 0, 0, 0, 0, 2)))[:, :7]  # two channels of zeros
        assert deviation(model(images), expected) <= 1e-5


def test_dropout_of_alexnet_is_what_was_asked_for():
    with torch.device("meta"):
        weights = AlexNet().state_dict()
        assert AlexNet.from_state_dict(weights).dropout.p == 0.5
        assert AlexNet.from_state_dict(weights, dropout=0.25).dropout.p == 0.25


def test_checkpoints_without_batch_counters_load():
    """Those of PyTorch before 0.4.1, torchvision's own among them."""
    state_dict = ResNet18().state_dict()
    state_dict["bn1.running_mean"] += 1
    old = {key: state_dict[key] for key in state_dict if not key.endswith("batches_tracked")}
    model = ResNet18.from_state_dict(old)
    assert model.bn1.num_batches_tracked == 0
    assert torch.equal(model.bn1.running_mean, state_dict["bn1.running_mean"])


def test_network_is_float32_and_contiguous_for_any_checkpoint(name, empty):
    checkpoint = empty.to(torch.bfloat16).to(memory_format=torch.channels_last).state_dict()
    with torch.device("meta"):
        parameters = list(MODELS[name].from_state_dict(checkpoint).parameters())
    for parameter in parameters:
        assert parameter.dtype == torch.float32
        assert parameter.is_contiguous()
        assert parameter.requires_grad


def test_network_has_the_tensors_of_its_own_checkpoint_and_shares_no_memory_with_it(name, model):
    checkpoint = model.state_dict()
    loaded = MODELS[name].from_state_dict(checkpoint).state_dict()
    assert list(loaded) == list(checkpoint)
    for key, tensor in loaded.items():
        assert torch.equal(tensor, checkpoint[key]), key
        assert tensor.data_ptr() != checkpoint[key].data_ptr(), key


CHANGES = {
    "without a bias": (lambda weights, head: weights.pop(f"{head}.bias"), "{head}.bias"),
    "with another tensor": (lambda weights, _: weights.update(extra=torch.zeros(2)), "extra"),
    "of another size": (
        lambda weights, _: weights.update({"conv1.weight": torch.zeros(64, 3, 5, 5)}),
        "conv1.weight",
    ),
    "with a list": (lambda weights, head: weights.update({f"{head}.bias": [1.0]}), "{head}.bias"),
    "with a list as head": (
        lambda weights, head: weights.update({f"{head}.weight": [1.0]}),
        "{head}.weight",
    ),
}


@pytest.mark.parametrize("change, named", CHANGES.values(), ids=CHANGES)
def test_checkpoint_that_does_not_fit_raises_and_names_a_tensor(name, empty, change, named):
    checkpoint = dict(empty.state_dict())
    change(checkpoint, HEADS[name])
    with torch.device("meta"), pytest.raises(RuntimeError, match=named.format(head=HEADS[name])):
        MODELS[name].from_state_dict(checkpoint)


@pytest.mark.parametrize("layer", ["head", "first layer"])
@pytest.mark.parametrize("flat", [False, True], ids=["missing", "flat"])
def test_checkpoint_without_head_or_first_layer_says_which_names_it_has(name, empty, layer, flat):
    checkpoint = dict(empty.state_dict())
    key = f"{HEADS[name]}.weight" if layer == "head" else "conv1.weight"
    tensor = checkpoint.pop(key)
    if flat:
        checkpoint = {key: tensor.flatten(), **checkpoint}
    with pytest.raises(RuntimeError) as error:
        MODELS[name].from_state_dict(checkpoint)
    assert key in str(error.value)
    assert ", ".join(list(checkpoint)[:3]) in str(error.value)


def test_whole_training_file_says_that_the_state_dict_is_inside(name, empty):
    file = {"state_dict": empty.state_dict(), "epoch": 3, "optimizer": {"state": {0: {}}}}
    with pytest.raises(RuntimeError, match=r'state_dict, epoch, optimizer.+\["state_dict"\]'):
        MODELS[name].from_state_dict(file)


def test_empty_checkpoint_says_that_nothing_is_in_it(name):
    with pytest.raises(RuntimeError, match="none"):
        MODELS[name].from_state_dict({})


def test_checkpoint_of_the_other_network_raises_and_names_a_tensor(name, empty):
    (other,) = MODELS.keys() - {name}
    with pytest.raises(RuntimeError, match=rf"{HEADS[other]}\.weight"):
        MODELS[other].from_state_dict(empty.state_dict())

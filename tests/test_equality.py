"""With the same weights, the networks here compute what torchvision's compute."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.oracle import MODELS, deviation, oracle

SIZES = {"alexnet": [63, 128, 224, 256], "resnet18": [32, 65, 160, 224, 256]}


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_logits_equal_torchvision(name, model, expected_model, dtype, tolerance, batch_size):
    model, expected_model = (copy.deepcopy(m).to(dtype) for m in (model, expected_model))
    for height, width in [(size, size) for size in SIZES[name]] + [(63, 200), (200, 64)]:
        images = torch.randn(batch_size, 3, height, width, dtype=dtype)
        with torch.inference_mode():
            logits, expected = model(images), expected_model(images)
        assert logits.shape == (batch_size, 1000)
        assert deviation(logits, expected) <= tolerance, (height, width)


@pytest.mark.parametrize("name, options", [("alexnet", {"dropout": 0}), ("resnet18", {})])
def test_training_step_equals_torchvision(name, options):
    """The loss, every gradient and the batch-norm statistics, with dropout at 0."""
    expected_model = oracle(name, num_classes=10, **options).double().train()
    model = MODELS[name].from_state_dict(expected_model.state_dict()).train()
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


@pytest.mark.parametrize("num_classes, in_channels", [(1000, 3), (7, 3), (7, 1)])
@pytest.mark.parametrize("origin", ["torchvision alexnet", "torchvision resnet18", "timm resnet18"])
def test_from_state_dict_takes_checkpoints_of_others_and_its_own(origin, num_classes, in_channels):
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
    images = torch.randn(2, in_channels, 64, 64)
    with torch.inference_mode():
        expected = theirs.eval()(images)
        assert expected.shape == (2, num_classes)
        assert deviation(ours.eval()(images), expected) <= 1e-5
        assert torch.equal(again.eval()(images), ours(images))


def test_from_state_dict_copies_the_tensors(name, expected_model):
    state_dict = expected_model.state_dict()
    first = next(iter(state_dict.values()))
    before = first.clone()
    with torch.no_grad():
        MODELS[name].from_state_dict(state_dict).conv1.weight.zero_()
    assert torch.equal(first, before)


def test_from_state_dict_takes_checkpoints_that_count_no_batches():
    """Those of PyTorch before 0.4.1, torchvision's own among them."""
    state_dict = oracle("resnet18").state_dict()
    old = {key: state_dict[key] for key in state_dict if not key.endswith("batches_tracked")}
    model = MODELS["resnet18"].from_state_dict(old)
    assert model.bn1.num_batches_tracked == 0
    assert torch.equal(model.bn1.running_mean, state_dict["bn1.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_from_state_dict_keeps_the_dtype_and_a_plain_layout(dtype):
    theirs = oracle("resnet18").to(dtype=dtype, memory_format=torch.channels_last)
    for parameter in MODELS["resnet18"].from_state_dict(theirs.state_dict()).parameters():
        assert parameter.dtype == dtype
        assert parameter.is_contiguous()
        assert parameter.requires_grad


def test_parameters_and_multiply_adds_are_the_published_ones(name, model):
    parameters, mega_multiply_adds = {
        "alexnet": (61_100_840, 714.2),
        "resnet18": (11_689_512, 1_814.1),
    }[name]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert counter.get_total_flops() / 2e6 == pytest.approx(mega_multiply_adds, abs=0.05)


def test_fused_resnet18_gives_the_same_logits_and_leaves_the_original_as_it_was():
    model = MODELS["resnet18"].from_state_dict(oracle("resnet18").state_dict())
    before = copy.deepcopy(model)
    fused = model.fuse()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        assert deviation(fused(images), before.eval()(images)) <= 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not fused.training
    assert model.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[key]), key

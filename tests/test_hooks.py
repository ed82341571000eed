"""Hooks on every module catch true values: what Grad-CAM and attribution libraries stand on."""

from __future__ import annotations

import copy

import torch

from tests.oracle import deviation


def test_what_a_forward_hook_caught_stays_what_the_module_returned(model):
    model, caught = copy.deepcopy(model), []
    for key, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, output, key=key: caught.extend(
                (key, tensor, tensor.clone()) for tensor in (*args, output)
            )
        )
    logits = model(torch.randn(2, 3, 64, 64))
    logits.square().mean().backward()
    assert {key for key, _, _ in caught} == {key for key, _ in model.named_modules()}
    assert [key for key, tensor, value in caught if not torch.equal(tensor, value)] == []


def test_forward_hooks_catch_what_torchvision_computes(name, model, expected_model):
    """Where a layer is followed by ReLU in place, torchvision's own hooks catch ReLU's output."""
    pairs = {
        "alexnet": {"conv1": "features.0", "conv3": "features.6", "fc3": "classifier.6"},
        "resnet18": {"bn1": "bn1", "layer1": "layer1", "layer4.0": "layer4.0", "fc": "fc"},
    }
    images, caught = torch.randn(2, 3, 64, 64), {}
    for network, keys in (model, pairs[name]), (expected_model, pairs[name].values()):
        network, outputs = copy.deepcopy(network), []
        for key in keys:
            network.get_submodule(key).register_forward_hook(
                lambda module, args, output, outputs=outputs: outputs.append(output.clone())
            )
        network(images)
        caught[network.__class__.__module__] = outputs
    assert len(caught) == 2
    for actual, expected in zip(*caught.values()):
        assert deviation(actual, expected) <= 1e-5


def test_full_backward_hooks_on_every_module_catch_the_gradients(model):
    model, outputs, caught = copy.deepcopy(model).double(), {}, {}
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    def keep_output(key):
        return lambda module, args, output: outputs.setdefault(key, []).append(output)

    def keep_gradient(key):
        return lambda module, inputs, outputs: caught.setdefault(key, []).append(outputs[0])

    handles = [m.register_forward_hook(keep_output(key)) for key, m in model.named_modules()]
    loss = model(images).square().sum()
    calls = [(key, output) for key, several in outputs.items() for output in several]
    expected = torch.autograd.grad(loss, [output for _, output in calls])
    for handle in handles:
        handle.remove()

    for key, module in model.named_modules():
        module.register_full_backward_hook(keep_gradient(key))
    model(images.requires_grad_()).square().sum().backward()
    assert caught.keys() == outputs.keys()
    gradients = {key: list(several) for key, several in caught.items()}
    for (key, _), gradient in zip(calls, expected):
        if key.endswith("shortcut"):  # where it is the identity, its output has other uses too
            gradient = caught[key.replace("shortcut", "bn2")][0]  # they meet in a sum
        # The backward pass meets the calls of a module in reverse order.
        assert deviation(gradients[key].pop(), gradient) <= 1e-9, key

"""Hooks on every module capture true values: what Grad-CAM and attribution libraries stand on."""

from __future__ import annotations

import copy

import torch

from tests.oracle import deviation


def test_captured_activations_stay_as_the_module_returned_them(model):
    model, captured = copy.deepcopy(model), []
    for key, module in model.named_modules():
        module.register_forward_hook(
            lambda module, args, output, key=key: captured.extend(
                (key, tensor, tensor.clone()) for tensor in (*args, output)
            )
        )
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert {key for key, _, _ in captured} == {key for key, _ in model.named_modules()}
    assert [key for key, tensor, value in captured if not torch.equal(tensor, value)] == []


def test_captured_activations_equal_torchvision(name, model, expected_model):
    """Where a layer is followed by ReLU in place, torchvision's own hooks capture ReLU's output."""
    pairs = {
        "alexnet": {"conv1": "features.0", "conv3": "features.6", "fc3": "classifier.6"},
        "resnet18": {"bn1": "bn1", "layer1": "layer1", "layer4.0": "layer4.0", "fc": "fc"},
    }[name]
    images, captured = torch.randn(2, 3, 64, 64), []
    for network, keys in (model, pairs.keys()), (expected_model, pairs.values()):
        network, outputs = copy.deepcopy(network), []
        captured.append(outputs)
        for key in keys:
            network.get_submodule(key).register_forward_hook(
                lambda module, args, output, outputs=outputs: outputs.append(output.clone())
            )
        network(images)
    assert len(captured[0]) == len(pairs)
    for actual, expected in zip(*captured):
        assert deviation(actual, expected) <= 1e-5


def test_full_backward_hooks_on_every_module_capture_the_gradients(model):
    model, outputs, captured = copy.deepcopy(model).double(), [], {}
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)

    def keep_output(key):
        return lambda module, args, output: outputs.append((key, output))

    def keep_gradient(key):
        return lambda module, inputs, outputs: captured.setdefault(key, []).append(outputs[0])

    handles = [m.register_forward_hook(keep_output(key)) for key, m in model.named_modules()]
    loss = model(images).square().sum()
    expected = torch.autograd.grad(loss, [output for _, output in outputs])
    for handle in handles:
        handle.remove()
    for key, module in model.named_modules():
        module.register_full_backward_hook(keep_gradient(key))
    model(images.requires_grad_()).square().sum().backward()

    assert captured.keys() == {key for key, _ in outputs}
    gradients = {key: list(several) for key, several in captured.items()}
    for (key, _), gradient in zip(outputs, expected):
        if key.endswith("shortcut"):  # where it is the identity, its output has other uses too
            gradient = captured[key.replace("shortcut", "bn2")][0]  # they meet in a sum
        # The backward pass meets the calls of a module in reverse order.
        assert deviation(gradients[key].pop(), gradient) <= 1e-9, key

"""Forward and backward hooks, which Grad-CAM and attribution libraries need."""

from __future__ import annotations

import copy

import torch

from resnet18 import ResNet18
from tests.oracle import deviation

# The modules of torchvision's networks that return the same, one for each call of a module of ours.
COUNTERPARTS = {
    "alexnet": {
        "": [""],
        "conv1": ["features.0"],
        "conv2": ["features.3"],
        "conv3": ["features.6"],
        "conv4": ["features.8"],
        "conv5": ["features.10"],
        "pool": ["features.2", "features.5", "features.12"],
        "fc1": ["classifier.1"],
        "fc2": ["classifier.4"],
        "fc3": ["classifier.6"],
    },
    "resnet18": {
        key: [key.replace("shortcut", "downsample")]
        for key, module in ResNet18().named_modules()
        if not key.endswith("shortcut") or len(module) > 0  # an empty one is the identity
    },
}


def test_hooked_activations_are_not_overwritten(model):
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


def outputs_of_modules(network, images) -> dict[str, list[torch.Tensor]]:
    """Return what each module returns, in the order of its calls."""
    network, outputs = copy.deepcopy(network), {}
    for key, module in network.named_modules():
        module.register_forward_hook(
            lambda module, args, output, key=key: outputs.setdefault(key, []).append(
                output.clone()  # torchvision's ReLU changes it in place
            )
        )
    network(images)
    return outputs


def test_every_module_returns_what_torchvisions_counterpart_returns(name, model, expected_model):
    images = torch.randn(2, 3, 64, 64)
    outputs = outputs_of_modules(model, images)
    expected = outputs_of_modules(expected_model, images)
    without = {key for key in outputs if key not in COUNTERPARTS[name]}
    assert all(key == "dropout" or key.endswith("shortcut") for key in without)
    for key, counterparts in COUNTERPARTS[name].items():
        assert len(outputs[key]) == len(counterparts), key
        for output, counterpart in zip(outputs[key], counterparts):
            assert deviation(output, *expected[counterpart]) <= 1e-5, (key, counterpart)


def test_backward_hooks_on_every_module_get_the_gradients(model):
    model, outputs, captured = copy.deepcopy(model), [], {}
    images = torch.randn(2, 3, 64, 64)

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
        assert deviation(gradients[key].pop(), gradient) <= 1e-5, key

"""The README's tables and printed summary are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import alexnet
import resnet18
from examples.weights import official_weights
from tests.oracle import MODELS

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table under a heading, without its head."""
    section = README.split(f"{heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip(" `") for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("heading", ["AlexNet", "ResNet-18"])
def test_every_number_of_the_architecture_tables_is_the_networks(heading):
    model = MODELS[heading.lower().replace("-", "")]().eval()
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    *layers, (_, _, _, parameters, multiply_adds) = table(f"### {heading}")
    parts = {name: getattr(model, name) for name, *_ in layers}
    for name, what, output, layer_parameters, layer_multiply_adds in layers:
        with_bn = [parts[name], getattr(model, name.replace("conv", "bn"), None)]
        count = sum(p.numel() for part in set(with_bn) - {None} for p in part.parameters())
        assert f"{count:,}" == layer_parameters, name
        flops = sum(counter.get_flop_counts()[f"{type(model).__name__}.{name}"].values())
        assert f"{flops / 2e6:,.1f}" == layer_multiply_adds, name
        shape = shapes[name]
        if what.endswith("pool"):
            pool = getattr(model, "maxpool", getattr(model, "pool", None))
            shape = pool(torch.zeros(1, *shape)).shape[1:]
        assert " × ".join(map(str, shape)) == output, name
        if isinstance(parts[name], torch.nn.Conv2d):
            conv = parts[name]
            assert what.startswith(f"{conv.kernel_size[0]} × {conv.kernel_size[1]}"), name
            assert f"{conv.in_channels} → {conv.out_channels}" in what
            assert (f"stride {conv.stride[0]}" in what) == (conv.stride[0] > 1)
        if isinstance(parts[name], torch.nn.Linear):
            assert f"{parts[name].in_features} → {parts[name].out_features}" in what
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
    assert f"{counter.get_total_flops() / 2e6:,.1f}" == multiply_adds


def test_the_accuracies_are_those_of_the_official_weights():
    for name, top1, top5 in table("## Classify a photograph"):
        metrics = official_weights(name.lower().replace("-", "")).meta["_metrics"]["ImageNet-1K"]
        assert top1 == f"{metrics['acc@1']:.3f} %"
        assert top5 == f"{metrics['acc@5']:.3f} %"


def test_the_summary_is_the_networks():
    assert str(alexnet.AlexNet()) in README


@pytest.mark.parametrize("module", [alexnet, resnet18])
def test_every_shape_in_a_forward_pass_is_the_networks(module):
    """The comment at the end of each line of `forward` against the tensor of that line."""
    name = "AlexNet" if module is alexnet else "ResNet18"
    source = Path(module.__file__).read_text(encoding="utf-8")
    forward = source.split(f"class {name}")[1].split("        x = check_images", 1)[1]
    lines = forward.split("        return")[0].splitlines()[1:]
    model = getattr(module, name)().eval()
    x = torch.zeros(5, 3, 224, 224)
    for line in lines:
        code, shape = re.fullmatch(r"\s+x = (.+?)  # (\(N, [\d, ]+\)).*", line).groups()
        with torch.inference_mode():
            x = eval(code, {"self": model, "x": x, "F": torch.nn.functional})
        assert str(tuple(x.shape)).replace("(5,", "(N,") == shape, line

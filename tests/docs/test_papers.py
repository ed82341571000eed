"""docs/papers.md and the figures of the networks are true: quotations, numbers, shapes, code."""

from __future__ import annotations

import operator
import re
from math import prod
from pathlib import Path
from typing import Any, Iterator
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils.flop_counter import FlopCounterMode

from alexnet import AlexNet
from resnet18 import BasicBlock, ResNet18
from tests.oracle import MODELS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "papers.md").read_text(encoding="utf-8")


def table(after: str) -> list[list[str]]:
    """Return the cells of the first table after some words, row by row, without its head."""
    lines = PAGE.split(after, 1)[1].split("\n|", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]


def code_block(after: str) -> str:
    return PAGE.split(after, 1)[1].split("```python\n", 1)[1].split("```", 1)[0]


def quotations() -> Iterator[tuple[Path, str]]:
    """Yield the code in each cell of a table that follows a link to a file, with this file."""
    for line in PAGE.splitlines():
        for cell in line.split("|") if line.startswith("|") else []:
            _, *parts = re.split(r"\]\((\.\./[^)]+)\)", cell)
            for link, text in zip(parts[::2], parts[1::2]):
                for code in re.findall(r"`([^`]+)`", text):
                    yield DOCS / link, code


def output_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of what each child returns for one 224 x 224 image, without the batch."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_children():
        module.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    model.to("meta")(torch.empty(1, 3, 224, 224, device="meta"))
    return shapes


def count(model: nn.Module) -> tuple[int, float]:
    """Return the parameters of a network and its multiply-adds, in millions, for one image."""
    with FlopCounterMode(display=False) as counter:
        model.to("meta").eval()(torch.empty(1, 3, 224, 224, device="meta"))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e6


def alexnet_of(filters: list[int], groups: tuple[int, ...]) -> nn.Module:
    """Return an AlexNet with other filters; a group of a convolution sees its own inputs only."""
    first, second, third, fourth, fifth = filters
    with torch.device("meta"):
        return nn.Sequential(
            nn.Conv2d(3, first, 11, stride=4, padding=2, groups=groups[0]),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(first, second, 5, padding=2, groups=groups[1]),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(second, third, 3, padding=1, groups=groups[2]),
            nn.Conv2d(third, fourth, 3, padding=1, groups=groups[3]),
            nn.Conv2d(fourth, fifth, 3, padding=1, groups=groups[4]),
            nn.MaxPool2d(3, 2),
            nn.Flatten(),
            nn.Linear(fifth * 6 * 6, 4096),
            nn.Linear(4096, 4096),
            nn.Linear(4096, 1000),
        )


def test_quoted_code_is_in_the_named_file():
    quoted = list(quotations())
    assert quoted
    assert [
        (path.name, code)
        for path, code in quoted
        if not path.exists() or code not in path.read_text(encoding="utf-8")
    ] == []


def test_kernels_and_neurons_of_alexnet():
    *rows, (_, _, parameters_total, figure_total, _, here_total) = table("neurons, counted")
    shapes = output_shapes(AlexNet())
    sums = [0, 0, 0]
    for layer, kernels, parameters, in_figure, output, here in rows:
        number, *size = map(int, re.findall(r"\d+", kernels))
        assert f"{number * prod(size) + number:,}" == parameters, layer
        assert " × ".join(map(str, shapes[layer])) == output, layer
        assert f"{prod(shapes[layer]):,}" == here, layer
        if layer != "conv1":  # its number in the paper's figure is wrong
            assert f"{number * prod(shapes[layer][1:]):,}" == in_figure, layer
        for index, cell in enumerate((parameters, in_figure, here)):
            sums[index] += int(cell.replace(",", ""))
    assert [f"{total:,}" for total in sums] == [parameters_total, figure_total, here_total]

    first = 96 * 55 * 55
    total = sums[1] - int(rows[0][3].replace(",", "")) + first
    below = PAGE.split("The first number of figure 2", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"\d+,\d+", below)[:2] == [f"{first:,}", f"{total:,}"]


def test_parameters_and_multiply_adds_of_every_alexnet():
    rows = table("compared with [1]:")
    groups = [(1, 2, 1, 2, 2), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1)]
    of_2012 = count(alexnet_of([96, 256, 384, 384, 256], groups[0]))
    for (_, filters, parameters, multiply_adds), group in zip(rows, groups):
        expected = count(alexnet_of([int(number) for number in filters.split(",")], group))
        first, *change = parameters.split(" ")
        assert first == f"{expected[0]:,}"
        assert change in ([], [f"({100 * (expected[0] / of_2012[0] - 1):+.2f}%)"])
        first, *change = multiply_adds.replace("−", "-").split(" ")
        assert first == f"{expected[1]:.1f}"
        assert change in ([], [f"({100 * (expected[1] / of_2012[1] - 1):+.1f}%)"])
    assert len(rows) == len(groups)
    with torch.device("meta"):
        assert expected == count(AlexNet()) == count(torchvision.models.alexnet())


def test_first_convolution_is_55_pixels_wide_with_a_padding_of_2():
    says = next(row[1] for row in table("## AlexNet, the 2012 paper") if "54.25" in row[1])
    assert f"(224 − 11) / 4 + 1 = {(224 - 11) / 4 + 1}" in says
    assert output_shapes(AlexNet())["conv1"] == (64, 55, 55)


def test_normalization_in_the_order_of_the_configuration_differs_and_pooling_does_not():
    x = torch.randn(2, 8, 9, 9)
    pool = nn.MaxPool2d(3, 2)
    torch.testing.assert_close(pool(F.relu(x)), F.relu(pool(x)), rtol=0, atol=0)
    normalize = nn.LocalResponseNorm(size=5, alpha=5, beta=0.75, k=2)
    assert not torch.allclose(pool(normalize(F.relu(x))), F.relu(pool(normalize(x))), rtol=0.01)


def test_momentum_is_that_of_the_paper_while_the_learning_rate_stays():
    start = torch.randn(5)
    weight = nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9, weight_decay=0.0005)
    w, v = start.clone(), torch.zeros(5)
    for rate, equal in [(0.01, True), (0.01, True), (0.01, True), (0.001, False)]:
        gradient = torch.randn(5)
        v = 0.9 * v - 0.0005 * rate * w - rate * gradient  # [1], section 5
        w = w + v
        weight.grad = gradient
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert torch.allclose(w, weight, rtol=0, atol=1e-6) == equal


def test_response_normalization_of_the_page_is_the_formula_of_the_paper():
    names: dict[str, Any] = {}
    exec(code_block("### Response normalization"), names)
    a = torch.rand(1, 12, 3, 3) * 100  # large enough for the sum to count
    squares = [(a[:, max(0, i - 2) : i + 3] ** 2).sum(1) for i in range(12)]
    expected = a / (2 + 1e-4 * torch.stack(squares, 1)) ** 0.75  # [1], section 3.3
    torch.testing.assert_close(names["normalize"](None, None, a), expected)

    images = torch.randn(1, 3, 64, 64)
    model = names["model"].eval()
    plain = AlexNet().eval()
    plain.load_state_dict(model.state_dict())
    assert model(images).shape == (1, 1000)
    assert (model.conv2(torch.randn(1, 64, 9, 9)) >= 0).all()
    assert not torch.equal(model(images), plain(images))


def test_table_1_of_the_resnet_paper():
    *rows, (_, flops, _, _, total) = table("Table 1 of [3] and the code")
    model = ResNet18()
    shapes = output_shapes(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    for _, size, layer, output, multiply_adds in rows:
        assert " × ".join(map(str, shapes[layer])) == output, layer
        assert layer == "fc" or output.endswith(f" × {size}"), layer
        layer_flops = sum(counter.get_flop_counts()[f"ResNet18.{layer}"].values())
        assert f"{layer_flops / 2e6:,.1f}" == multiply_adds, layer
    assert f"{counter.get_total_flops() / 2e6:,.1f}" == total
    assert f"{counter.get_total_flops() / 2e9:.1f} × 10⁹" == flops


def test_a_convolution_costs_the_same_in_every_stage():
    says = next(row[2] for row in table("## ResNet-18 [3]") if "multiply-adds" in row[2])
    for layer, side in (("layer1", 56), ("layer2", 28), ("layer3", 14), ("layer4", 7)):
        weights = getattr(ResNet18(), layer)[1].conv1.weight
        assert f"{weights.numel() * side * side / 1e6:.1f} million multiply-adds" in says


def test_options_a_b_and_c():
    names: dict[str, Any] = {}
    exec(code_block("### Option A"), names)
    project_everywhere = ResNet18()
    for block in project_everywhere.modules():
        if isinstance(block, BasicBlock) and len(block.shortcut) == 0:
            channels = block.conv2.out_channels
            block.shortcut = nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels)
            )
    models = names["model"], ResNet18(), project_everywhere
    for row, model in zip(table("### Options A, B and C"), models):
        parameters, multiply_adds = count(model)
        assert row[3:5] == [f"{parameters:,}", f"{multiply_adds:,.1f}"], row[0]


def test_option_a_pads_with_zeros():
    names: dict[str, Any] = {}
    exec(code_block("### Option A"), names)
    x = torch.randn(1, 64, 7, 7)
    padded = names["model"].layer2[0].shortcut(x)
    assert padded.shape == BasicBlock(64, 128, stride=2)(x).shape
    assert torch.equal(padded[:, :64], x[:, :, ::2, ::2])
    assert not padded[:, 64:].any()


def test_a_block_whose_last_weights_are_zero_passes_its_input_through():
    block = BasicBlock(8, 8).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 8, 5, 5)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("model, key", [("AlexNet", "alexnet"), ("ResNet-18", "resnet18")])
def test_errors_of_the_official_weights(model, key):
    row = next(r for r in table("## Errors") if r[0] == f"{model}, torchvision's weights")
    weights = torchvision.models.get_model_weights(key).IMAGENET1K_V1
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]
    expected = [f"{100 - accuracy[name]:.3f}%" for name in ("acc@1", "acc@5")]
    assert row[1:4] == ["one", *expected]


# The figures


class ByLayer(fx.Tracer):
    """Sees each of ResNet-18's layers as one."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return name.startswith("layer") or super().is_leaf_module(m, name)


def size_and_stride(module: nn.Module) -> list[str]:
    """Return what a figure says below the name of a module."""
    if isinstance(module, nn.Sequential):
        blocks = [(block.conv1.in_channels, block.conv1) for block in module]
        texts = [f"{channels} → {conv.out_channels}" for channels, conv in blocks]
        strides = [conv.stride[0] for _, conv in blocks]
    elif isinstance(module, nn.Conv2d):
        texts = [f"{module.kernel_size[0]} × {module.kernel_size[1]}"]
        strides = [module.stride[0]]
    elif isinstance(module, nn.MaxPool2d):
        texts, strides = [f"{module.kernel_size} × {module.kernel_size}"], [module.stride]
    else:
        return []
    return [f"{t}, stride {s}" if s > 1 else t for t, s in zip(texts, strides)]


def steps(model: nn.Module, image: tuple[int, ...], first: str) -> list[str]:
    """Return each step of `forward`, and after it the shape of its result if that is a new one."""
    tracer = ByLayer()
    graph = fx.GraphModule(model, tracer.trace(model))
    ShapeProp(graph.to("meta")).propagate(torch.empty(1, *image, device="meta"))
    functions = {F.relu: "ReLU", operator.add: "+", F.adaptive_avg_pool2d: "average pool"}
    texts = []
    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        if node.op == "placeholder":
            texts += [first]
        elif node.op == "call_module":
            texts += [node.target, *size_and_stride(graph.get_submodule(node.target))]
        else:
            texts += [functions.get(node.target, node.target)]
        if node.target is F.adaptive_avg_pool2d:
            size = node.kwargs.get("output_size") or node.args[1]
            texts += [f"to {size} × {size}"]
        shape = node.meta["tensor_meta"].shape
        if not node.args or shape != node.args[0].meta["tensor_meta"].shape:
            texts += ["×".join(map(str, shape[1:]))]
    return texts


def drawn(file: str, group: str | None = None) -> list[str]:
    """Return the names, sizes and shapes in a figure, in their order."""
    svg = "{http://www.w3.org/2000/svg}"
    root = ElementTree.parse(DOCS / file).getroot()
    part = root if group is None else root.find(f"{svg}g[@id='{group}']")
    kinds = ("module", "function", "detail", "shape")
    return [text.text for text in part.iter(f"{svg}text") if text.get("class") in kinds]


def test_the_figures_of_the_networks_show_every_step_of_forward(name):
    assert drawn(f"{name}.svg") == [*steps(MODELS[name](), (3, 224, 224), "images"), "logits"]


def test_the_figure_of_the_block_shows_every_step_of_forward():
    assert drawn("block.svg", "identity") == steps(BasicBlock(64, 64), (64, 56, 56), "x")
    projection = [text for text in drawn("block.svg", "projection") if text != "batch norm"]
    assert projection == steps(BasicBlock(64, 128, stride=2), (64, 56, 56), "x")

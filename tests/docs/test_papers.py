"""docs/papers.md is true: quotations, numbers, shapes, code."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alexnet import AlexNet
from resnet18 import BasicBlock, ResNet18

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


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers of a network by name."""
    layers = (nn.Conv2d, nn.Linear)
    return {name: m for name, m in model.named_children() if isinstance(m, layers)}


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
    """The columns of [2012] are those of its network with two groups, except one wrong number."""
    of_2012 = alexnet_of([96, 256, 384, 384, 256], groups=(1, 2, 1, 2, 2))
    layers, shapes_of_2012 = weighted_layers(of_2012), output_shapes(of_2012)
    neurons_of_2012 = [prod(shapes_of_2012[name]) for name in layers]
    shapes = output_shapes(AlexNet())
    *rows, totals = table("neurons, counted")
    assert [row[0] for row in rows] == list(weighted_layers(AlexNet()))

    for (name, kernels, parameters, in_figure, output, neurons), layer, expected in zip(
        rows, layers.values(), neurons_of_2012
    ):
        number, depth, *size = layer.weight.shape
        assert kernels == f"{number} of {' × '.join(map(str, [*size, depth]))}", name
        assert parameters == f"{sum(p.numel() for p in layer.parameters()):,}", name
        assert in_figure == ("253,440" if name == "conv1" else f"{expected:,}"), name
        assert output == " × ".join(map(str, shapes[name])), name
        assert neurons == f"{prod(shapes[name]):,}", name

    right = sum(neurons_of_2012)
    in_figure = right - neurons_of_2012[0] + 253_440
    here = sum(prod(shapes[row[0]]) for row in rows)
    assert totals[2:] == [f"{count(of_2012)[0]:,}", f"{in_figure:,}", "", f"{here:,}"]
    below = PAGE.split("The first number of figure 2", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"\d+,\d+", below)[:2] == [f"{neurons_of_2012[0]:,}", f"{right:,}"]


def test_parameters_and_multiply_adds_of_every_alexnet():
    rows = table("## Which AlexNet is this?")
    of_2012 = count(alexnet_of([96, 256, 384, 384, 256], groups=(1, 2, 1, 2, 2)))
    for network, filters, parameters, multiply_adds, *_ in rows:
        groups = (1, 2, 1, 2, 2) if "two groups" in network else (1, 1, 1, 1, 1)
        expected = count(alexnet_of([int(number) for number in filters.split(",")], groups))
        first, *change = parameters.split(" ")
        assert first == f"{expected[0]:,}", network
        assert change in ([], [f"({100 * (expected[0] / of_2012[0] - 1):+.2f}%)"]), network
        first, *change = multiply_adds.replace("−", "-").split(" ")
        assert first == f"{expected[1]:.1f}", network
        assert change in ([], [f"({100 * (expected[1] / of_2012[1] - 1):+.1f}%)"]), network
    with torch.device("meta"):
        assert expected == count(AlexNet()) == count(torchvision.models.alexnet())


def test_initializations_print_what_the_page_shows(capsys):
    exec(code_block("### Initialization"), {})
    shown = PAGE.split("### Initialization", 1)[1].split("```text\n", 1)[1].split("```", 1)[0]
    for line, expected in zip(capsys.readouterr().out.splitlines(), shown.splitlines()):
        *words, deviation, _, loss = line.split()
        *expected_words, expected_deviation, _, expected_loss = expected.split()
        assert words == expected_words
        assert float(deviation) == pytest.approx(float(expected_deviation), rel=0.05, abs=1e-4)
        assert float(loss) == pytest.approx(float(expected_loss), rel=0.05)


def test_response_normalization_of_the_page_is_the_formula_of_the_paper():
    names: dict[str, Any] = {}
    exec(code_block("### Response normalization"), names)
    a = torch.rand(1, 12, 3, 3) * 100  # large enough for the sum to count
    squares = [(a[:, max(0, i - 2) : i + 3] ** 2).sum(1) for i in range(12)]
    expected = a / (2 + 1e-4 * torch.stack(squares, 1)) ** 0.75  # [2012], section 3.3
    torch.testing.assert_close(names["normalize"](None, None, a), expected)

    images = torch.randn(1, 3, 64, 64)
    model = names["model"].eval()
    plain = AlexNet().eval()
    plain.load_state_dict(model.state_dict())
    assert model(images).shape == (1, 1000)
    assert (model.conv2(torch.randn(1, 64, 9, 9)) >= 0).all()
    assert not torch.equal(model(images), plain(images))


def test_table_1_of_the_resnet_paper():
    shapes = output_shapes(ResNet18())
    for _, size, layer, output in table("Table 1 of [2015a] and the code"):
        assert output == " × ".join(map(str, shapes[layer])), layer
        assert layer == "fc" or output.endswith(f" × {size}"), layer


def test_multiply_adds_of_resnet18():
    rows = table("## ResNet-18\n")
    _, multiply_adds = count(ResNet18())
    assert any(f"{multiply_adds:,.1f} million multiply-adds" in row[2] for row in rows)
    says = next(row[2] for row in rows if "in each of" in row[2])
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

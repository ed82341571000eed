"""docs/papers.md is true: quotations, numbers, shapes, code."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from alexnet import AlexNet
from resnet18 import BasicBlock, ResNet18
from tests.docs.pages import DOCS, blocks, read, table

PAGE = read(DOCS / "papers.md")


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


def test_quoted_code_is_in_the_named_file():
    quoted = list(quotations())
    assert quoted
    assert [
        (path.name, code)
        for path, code in quoted
        if not path.exists() or code not in path.read_text(encoding="utf-8")
    ] == []


def test_initializations_print_what_the_page_shows(capsys):
    after = PAGE.split("### Initialization", 1)[1]
    exec(blocks(after, "python")[0], {})
    printed, shown = capsys.readouterr().out.splitlines(), blocks(after, "text")[0].splitlines()
    assert len(printed) == len(shown)
    for line, expected in zip(printed, shown):
        *words, deviation, _, loss = line.split()
        *expected_words, expected_deviation, _, expected_loss = expected.split()
        assert words == expected_words
        assert float(deviation) == pytest.approx(float(expected_deviation), rel=0.05, abs=1e-4)
        assert float(loss) == pytest.approx(float(expected_loss), rel=0.05)


@pytest.fixture(scope="module")
def network_of_2012() -> dict[str, Any]:
    """The variables of the block that turns AlexNet into the network of [2012]."""
    variables: dict[str, Any] = {}
    exec(blocks(PAGE.split("### The network of 2012")[1], "python")[0], variables)
    return variables


def test_the_network_of_2012_has_the_parameters_of_the_paper(network_of_2012, capsys):
    code, shown = (
        blocks(PAGE.split("### The network of 2012")[1], language)[0]
        for language in ("python", "text")
    )
    exec(code, {})
    assert capsys.readouterr().out == shown == "60,965,224 parameters\n"
    *rows, total = table(PAGE, "counted layer by layer for one 224 × 224 image")
    for layer, _, parameters, *_ in rows:
        module = network_of_2012["model"].get_submodule(layer)
        assert f"{sum(p.numel() for p in module.parameters()):,}" == parameters, layer
    assert total[2] == "60,965,224"


def test_the_network_of_2012_has_the_connections_of_the_page(network_of_2012):
    multiply_adds = table(PAGE, "## Which AlexNet is this?")[0][3]
    model = copy.deepcopy(network_of_2012["model"])
    assert f"{count(model)[1]:.1f}" == multiply_adds


def test_the_network_of_2012_has_the_neurons_of_figure_2(network_of_2012):
    shapes = output_shapes(copy.deepcopy(network_of_2012["model"]))
    _, *rows, _ = table(PAGE, "counted layer by layer for one 224 × 224 image")
    for layer, _, _, neurons, *_ in rows:  # the number of conv1 in figure 2 is wrong
        assert f"{math.prod(shapes[layer]):,}" == neurons, layer


def test_the_network_of_2012_starts_as_in_the_paper(network_of_2012):
    ones = "conv2", "conv4", "conv5", "fc1", "fc2"
    for name, parameter in network_of_2012["model"].named_parameters():
        layer, kind = name.split(".")
        if kind == "bias":
            assert (parameter == (layer in ones)).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.02), name


def test_response_normalization_of_the_page_is_the_formula_of_the_paper(network_of_2012):
    a = torch.rand(1, 12, 3, 3) * 100  # large enough for the sum to count
    squares = [(a[:, max(0, i - 2) : i + 3] ** 2).sum(1) for i in range(12)]
    expected = a / (2 + 1e-4 * torch.stack(squares, 1)) ** 0.75  # [2012], section 3.3
    torch.testing.assert_close(network_of_2012["normalize"](None, None, a), expected)

    model = network_of_2012["model"]
    for layer, channels in ((model.conv1, 3), (model.conv2, 96)):
        x = 100 * torch.randn(1, channels, 31, 31)
        plain = nn.functional.conv2d(
            x, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups
        )
        torch.testing.assert_close(layer(x), network_of_2012["normalize"](None, None, plain))


def test_output_sizes_are_those_of_the_formula_and_of_the_network():
    model, size = AlexNet(), 224
    for names, n, k, s, p, computation, m in table(PAGE, "## Output sizes"):
        module = model.get_submodule(names.split("`")[0])
        layer = [module.kernel_size, module.stride, module.padding]
        layer = [number[0] if isinstance(number, tuple) else number for number in layer]
        assert layer == [int(k), int(s), int(p)], names
        assert int(n) == size, names
        numerator, quotient = size + 2 * int(p) - int(k), (size + 2 * int(p) - int(k)) // int(s)
        assert computation == f"⌊{numerator} / {s}⌋ + 1 = {quotient} + 1", names
        images = torch.zeros(1, getattr(module, "in_channels", 1), size, size)
        size = module(images).shape[-1]
        assert int(m) == size == quotient + 1, names
    assert size == 6


def test_errors_of_plain_and_residual_networks_are_the_same_on_all_pages():
    (_, *shallow), (_, *deep) = table(PAGE, "### Why residuals")
    assert (shallow, deep) == (["27.94%", "27.88%"], ["28.54%", "25.03%"])  # [2015a], table 2
    readme = read(DOCS.parent / "README.md")
    assert all(error in readme for error in (*shallow, *deep))
    option_a = table(PAGE, "### Options A, B and C")[0]
    assert option_a[-1] == deep[1]
    (row,) = (row for row in table(PAGE, "## Errors on ImageNet") if "[2015a]" in row[0])
    assert row[2] == shallow[1]


def test_table_1_of_the_resnet_paper():
    shapes = output_shapes(ResNet18())
    for _, size, layer, output in table(PAGE, "Table 1 of [2015a] and the code"):
        assert output == " × ".join(map(str, shapes[layer])), layer
        assert layer == "fc" or output.endswith(f" × {size}"), layer


def test_multiply_adds_of_resnet18():
    rows = table(PAGE, "## ResNet-18\n")
    _, multiply_adds = count(ResNet18())
    assert any(f"{multiply_adds:,.1f} million multiply-adds" in row[2] for row in rows)
    says = next(row[2] for row in rows if "in each of" in row[2])
    for layer, side in (("layer1", 56), ("layer2", 28), ("layer3", 14), ("layer4", 7)):
        weights = getattr(ResNet18(), layer)[1].conv1.weight
        assert f"{weights.numel() * side * side / 1e6:.1f} million multiply-adds" in says


def test_options_a_b_and_c():
    names: dict[str, Any] = {}
    exec(blocks(PAGE.split("### Option A")[1], "python")[0], names)
    project_everywhere = ResNet18()
    for block in project_everywhere.modules():
        if isinstance(block, BasicBlock) and len(block.shortcut) == 0:
            channels = block.conv2.out_channels
            block.shortcut = nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels)
            )
    models = names["model"], ResNet18(), project_everywhere
    for row, model in zip(table(PAGE, "### Options A, B and C"), models):
        parameters, multiply_adds = count(model)
        assert row[3:5] == [f"{parameters:,}", f"{multiply_adds:,.1f}"], row[0]


def test_option_a_pads_with_zeros():
    names: dict[str, Any] = {}
    exec(blocks(PAGE.split("### Option A")[1], "python")[0], names)
    x = torch.randn(1, 64, 7, 7)
    padded = names["model"].layer2[0].shortcut(x)
    assert padded.shape == BasicBlock(64, 128, stride=2)(x).shape
    assert torch.equal(padded[:, :64], x[:, :, ::2, ::2])
    assert not padded[:, 64:].any()

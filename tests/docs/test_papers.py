"""docs/papers.md is true: quotations, numbers, shapes, code."""

from __future__ import annotations

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


def test_response_normalization_of_the_page_is_the_formula_of_the_paper():
    names: dict[str, Any] = {}
    exec(blocks(PAGE.split("### Response normalization")[1], "python")[0], names)
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

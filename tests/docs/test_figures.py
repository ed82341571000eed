"""The figures of the networks show every step of `forward`, with its sizes and shapes."""

from __future__ import annotations

import operator
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from resnet18 import BasicBlock
from tests.oracle import MODELS

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


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
    functions = {
        F.relu: "ReLU",
        operator.add: "+",
        F.adaptive_avg_pool2d: "average pool",
        torch.flatten: "flatten",
    }
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
            texts += [f"to {node.args[1]} × {node.args[1]}"]
        shape = node.meta["tensor_meta"].shape
        if not node.args or shape != node.args[0].meta["tensor_meta"].shape:
            texts += ["×".join(map(str, shape[1:]))]
    return texts


def drawn(file: str, group: str | None = None) -> list[str]:
    """Return the names, sizes and shapes in a figure, in their order."""
    root = ElementTree.parse(DOCS / file).getroot()
    part = root if group is None else root.find(f"{SVG}g[@id='{group}']")
    kinds = {"module", "function", "detail", "shape"}
    return [
        text.text
        for text in part.iter(f"{SVG}text")
        for classes in [text.get("class").split()]
        if kinds & set(classes) and "legend" not in classes
    ]


def test_figures_of_the_networks_show_every_step_of_forward(name):
    assert drawn(f"{name}.svg") == [*steps(MODELS[name](), (3, 224, 224), "images"), "logits"]


def test_figure_of_the_block_shows_every_step_of_forward():
    identity = [*steps(BasicBlock(64, 64), (64, 56, 56), "x"), "output"]
    assert drawn("block.svg", "identity") == identity
    projection = [text for text in drawn("block.svg", "projection") if text != "batch norm"]
    assert projection == [*steps(BasicBlock(64, 128, stride=2), (64, 56, 56), "x"), "output"]


FILES = {"alexnet.svg": None, "resnet18.svg": None, "block.svg": BasicBlock(64, 128, stride=2)}


@pytest.mark.parametrize("file", FILES)
def test_bold_names_are_modules_and_blue_boxes_have_weights_as_the_legend_says(file):
    model = FILES[file] or MODELS[file.partition(".")[0]]()
    elements, names = list(ElementTree.parse(DOCS / file).iter()), []
    for box, text in zip(elements, elements[1:]):
        if box.tag != f"{SVG}rect" or text.tag != f"{SVG}text" or "legend" in text.get("class"):
            continue
        blue = box.get("class") == "weights"
        if text.get("class") == "module":
            names.append(text.text)
            parameters = list(model.get_submodule(text.text).parameters())
            assert blue == bool(parameters), text.text
        else:
            assert not blue and not hasattr(model, text.text), text.text
    assert names


@pytest.mark.parametrize("file", FILES)
def test_letters_can_be_read_at_a_width_of_360_pixels(file):
    root = ElementTree.parse(DOCS / file).getroot()
    style = root.find(f"{SVG}style").text
    sizes = [float(size) for size in re.findall(r"([\d.]+)px", style)]
    assert min(sizes) * 360 / float(root.get("width")) >= 9.5

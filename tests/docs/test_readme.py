"""The README's snippet, figures and tables are true."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from resnet18 import BasicBlock
from tests.oracle import MODELS, oracle

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
HEADINGS = {"alexnet": "### AlexNet\n", "resnet18": "### ResNet-18\n"}


def block(after: str, language: str) -> str:
    """Return the first code block of a language after some words."""
    return README.split(after, 1)[1].split(f"```{language}\n", 1)[1].split("```", 1)[0]


def table(after: str) -> list[list[str]]:
    """Return the rows of the first table after some words, without its head."""
    lines = README.split(after, 1)[1].split("\n| ", 1)[1].split("\n\n", 1)[0].splitlines()
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines[2:]]


def figure(after: str) -> list[list[str]]:
    """Return the labels of each path through a Mermaid figure."""
    paths = block(after, "mermaid").splitlines()[1:]
    return [
        [re.sub(r"\w+[\[(]+|[\])]", "", node.strip()) for node in p.split("-->")] for p in paths
    ]


def test_the_snippet_prints_what_is_shown(tmp_path, monkeypatch, capsys):
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(oracle("resnet18").state_dict(), cache / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    exec(block("official weights", "python"), {})
    assert capsys.readouterr().out == block("official weights", "text")


def test_the_figures_show_the_layers_in_the_order_of_the_forward_pass(name):
    model, called = MODELS[name](), []
    for key, module in model.named_children():
        module.register_forward_hook(lambda _, __, ___, key=key: called.append(key))
    model.eval()(torch.zeros(1, 3, 64, 64))
    first, *rest = figure(HEADINGS[name])
    labels = first + [label for path in rest for label in path[1:]]
    assert labels == ["images", *called, "logits"]


def test_the_figure_of_the_block_shows_its_layers():
    main, around = figure("Each of the four layers")
    layers = [label for label in main[1:-1] + around[1:-1] if label not in ("ReLU", "+")]
    assert layers == [key for key, _ in BasicBlock(64, 64).named_children()]


def test_every_number_of_the_tables_of_layers(name):
    model, shapes = MODELS[name]().eval(), {}
    for key, module in model.named_children():
        module.register_forward_hook(lambda _, __, x, key=key: shapes.update({key: x.shape[1:]}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    *rows, (_, _, _, parameters, multiply_adds) = table(HEADINGS[name])
    for key, what, output, layer_parameters, layer_multiply_adds in rows:
        layer, shape = getattr(model, key), shapes[key]
        if what.endswith("pool"):
            pool = model.pool if name == "alexnet" else model.maxpool
            shape = pool(torch.zeros(1, *shape)).shape[1:]
        assert " × ".join(map(str, shape)) == output, key
        parts = [layer, model.bn1] if "batch norm" in what else [layer]
        assert f"{sum(p.numel() for x in parts for p in x.parameters()):,}" == layer_parameters, key
        flops = sum(counter.get_flop_counts()[f"{type(model).__name__}.{key}"].values())
        assert f"{flops / 2e6:,.1f}" == layer_multiply_adds, key
        if isinstance(layer, torch.nn.Conv2d):
            assert what.startswith(f"{layer.kernel_size[0]} × {layer.kernel_size[1]}"), key
            assert f"{layer.in_channels} → {layer.out_channels}" in what
            assert (f"stride {layer.stride[0]}" in what) == (layer.stride[0] > 1)
        if isinstance(layer, torch.nn.Linear):
            assert f"{layer.in_features} → {layer.out_features}" in what
    assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters
    assert f"{counter.get_total_flops() / 2e6:,.1f}" == multiply_adds


def test_the_accuracies_are_those_of_the_official_weights():
    for network, top1, top5 in table("### Accuracy"):
        weights = torchvision.models.get_model_weights(network.lower().replace("-", ""))
        metrics = weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
        assert (top1, top5) == (f"{metrics['acc@1']:.3f} %", f"{metrics['acc@5']:.3f} %")


def test_every_link_to_a_file_leads_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == []

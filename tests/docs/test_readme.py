"""The README's snippet, figures and tables are true."""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torchvision
from PIL import Image
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


def test_snippet_prints_the_three_most_likely_classes(tmp_path, monkeypatch, capsys):
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    theirs = oracle("resnet18").eval()
    torch.save(theirs.state_dict(), cache / Path(weights.url).name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    photograph = Image.effect_noise((320, 240), 90).convert("RGB")
    photograph.save("photo.jpg")

    exec(block("official ImageNet weights", "python"), {})

    with Image.open("photo.jpg") as image, torch.inference_mode():
        most_likely = theirs(weights.transforms()(image)[None])[0].topk(3).indices
    expected = [weights.meta["categories"][index] for index in most_likely]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%  ")[1] for line in lines] == expected


def test_figures_name_every_module(name):
    drawing = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    for module, _ in MODELS[name]().named_children():
        assert f">{module}</text>" in drawing, module


def test_figure_of_the_block_names_every_module():
    drawing = (ROOT / "docs" / "block.svg").read_text(encoding="utf-8")
    for module, _ in BasicBlock(64, 128, stride=2).named_modules():
        if module not in ("", "shortcut"):
            assert f">{module}</text>" in drawing, module


def test_tables_of_layers_have_the_numbers_of_the_networks(name):
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


def test_accuracies_are_those_that_torchvision_publishes():
    for network, top1, top5 in table("### Accuracy"):
        weights = torchvision.models.get_model_weights(network.lower().replace("-", ""))
        metrics = weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
        assert (top1, top5) == (f"{metrics['acc@1']:.3f}%", f"{metrics['acc@5']:.3f}%")


def test_links_to_files_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        links = re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == []

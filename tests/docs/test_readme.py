"""The README is true: commands, snippet, tables, links.

`.ci/run` runs its commands as they stand, in a fresh environment.
"""

from __future__ import annotations

import re
import runpy
import sys

import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tests.docs.pages import DOCS, ROOT, anchors, blocks, read, table
from tests.official import let_be_official, publish
from tests.oracle import MODELS

README = read(ROOT / "README.md")
NUMBER = r"(?<![\d.])\d+(?:\.\d+)?"
HEADINGS = {"alexnet": "### AlexNet\n", "resnet18": "### ResNet-18\n"}


# The first screen


def test_first_command_prints_the_last_lines_of_the_page(monkeypatch, capsys):
    _, *commands = blocks(README, "bash")[0].split(" && ")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for command, last_lines in zip(commands, blocks(README, "text")):
        _, script = command.split()
        monkeypatch.setattr(sys, "argv", [script])
        runpy.run_path(str(ROOT / script), run_name="__main__")
        assert capsys.readouterr().out.endswith(f"\n{last_lines.replace('cpu', device)}"), command


@pytest.fixture
def published(name, tmp_path, monkeypatch):
    """Publish random weights as the official ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    let_be_official(publish(name, tmp_path), name, monkeypatch)


@pytest.mark.usefixtures("published")
def test_snippet_prints_the_three_most_likely_classes(name, expected_model, monkeypatch, capsys):
    (snippet,) = blocks(README, "python")
    if name == "alexnet":  # as the page says
        snippet = snippet.replace("resnet18", "alexnet").replace("ResNet18", "AlexNet")
    monkeypatch.chdir(ROOT)

    exec(snippet, {})

    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    image = weights.transforms()(Image.open(DOCS / "cat.jpg"))
    with torch.inference_mode():
        expected = expected_model(image[None]).softmax(dim=1)[0]
    lines = [line.split("%  ") for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [label for _, label in lines] == [
        weights.meta["categories"][index] for index in expected.topk(3).indices
    ]
    for (percent, _), probability in zip(lines, expected.topk(3).values):
        assert float(percent) == pytest.approx(100 * probability.item(), abs=0.02)


def test_the_download_is_as_large_as_the_page_says(name):
    with torch.device("meta"):
        tensors = MODELS[name]().state_dict().values()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert f"({size / 1e6:.0f} MB)" in README


def test_no_parameter_of_alexnet_has_torchvisions_name():
    """So that `load_state_dict(..., strict=False)` loads nothing."""
    with torch.device("meta"):
        theirs, ours = torchvision.models.alexnet(), MODELS["alexnet"]()
    assert theirs.state_dict().keys().isdisjoint(ours.state_dict())


# Results at a glance


def test_accuracies_on_imagenet_are_those_that_torchvision_publishes():
    row = table(README, "## Results at a glance")[0]
    for name, cell in zip(("resnet18", "alexnet"), row[1:3]):
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        metrics = weights.meta["_metrics"]["ImageNet-1K"]
        assert cell == f"{metrics['acc@1']:.3f}% / {metrics['acc@5']:.3f}%"


def test_other_results_are_those_of_the_page_that_their_row_links_to():
    _, *rows = table(README, "## Results at a glance")
    assert rows
    for row in rows:
        page = read(ROOT / re.search(r"\]\((docs/\w+\.md)", row[-1])[1])
        lines = [line for line in page.splitlines() if line.startswith("|")]
        numbers = [n for line in lines for n in re.findall(NUMBER, line)]
        for cell in row[1:3]:
            for number in re.findall(NUMBER, cell):
                digits = len(number.partition(".")[2])
                assert number in {f"{float(n):.{digits}f}" for n in numbers}, (row[0], cell)


# The networks


def test_tables_of_layers_have_the_numbers_of_the_networks(name):
    model, shapes = MODELS[name]().eval(), {}
    for key, module in model.named_children():
        module.register_forward_hook(lambda _, __, x, key=key: shapes.update({key: x.shape[1:]}))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    *rows, (_, _, _, parameters, multiply_adds) = table(README, HEADINGS[name])
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


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "findings" / "README.md", *sorted(DOCS.glob("*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_lead_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\((?!https?:)([^)]+)", read(page)):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link

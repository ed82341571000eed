"""`python -m examples.benchmark` times what it says, and computes its ratios from that."""

import json
import re
import sys

import pytest
import torch
from PIL import Image
from torch import nn

for package in ("click", "pandas", "tabulate", "lightning_fabric", "matplotlib", "tqdm"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402

from examples import benchmark  # noqa: E402
from examples.benchmark import MODELS, build, implementations, main  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402

PLAIN = ["torchvision", "torchvision, channels-last", "ours", "ours, channels-last"]


def test_every_row_is_timed_in_turns_and_stands_in_the_table(tmp_path, monkeypatch):
    plain = lambda *given: {row: implementations(*given)[row] for row in PLAIN}  # noqa: E731
    monkeypatch.setattr(benchmark, "implementations", plain)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64"})
    given = "--model resnet18 --image-size 64 --seconds 0 --batch-size 1 --batch-size 2 --out"
    status, tables, _ = call(main, *given.split(), tmp_path / "out")
    assert (status, (tmp_path / "out" / "table.md").read_text(encoding="utf-8")) == (0, tables)
    assert min(Image.open(tmp_path / "out" / "time.png").size) >= 300
    times = pd.DataFrame(json.loads((tmp_path / "out" / "times.json").read_text()))
    machine = times["machine"][0]
    assert machine in tables and "arm64" in machine and f"torch {torch.__version__}" in machine
    for _, turns in times.groupby("batch_size"):
        assert len(turns) >= 3 * len(PLAIN)
        assert list(turns["row"]) == PLAIN * (len(turns) // len(PLAIN))
        medians = turns.groupby("row")["ms"].median()
        for row in PLAIN:
            cell = f"{medians[row]:.1f}, {medians['torchvision'] / medians[row]:.2f}"
            assert re.search(rf"\| {row} .*\| {cell} ", tables)


@pytest.fixture
def rows(tmp_path):
    """What builds each row for ResNet-18, and images (4, 3, 64, 64)."""
    theirs = benchmark.torchvision.models.resnet18().eval()
    ours, images = MODELS["resnet18"].from_state_dict(theirs.state_dict()), torch.rand(4, 3, 64, 64)
    return implementations(theirs, ours.eval(), images, tmp_path), images


@pytest.mark.slow
def test_every_engine_gives_the_logits(rows):
    for package in ("onnxruntime", "onnxscript", "openvino", "torchao"):
        pytest.importorskip(package)
    assert build(rows[0], tuple(benchmark.TOLERANCES), rows[1]).keys() == rows[0].keys()


def test_an_engine_that_is_not_installed_is_named_and_left_out(rows, monkeypatch, capsys):
    for package in ("openvino", "onnxruntime", "torchao"):
        monkeypatch.setitem(sys.modules, package, None)
    assert build(rows[0], ("int8",), rows[1]).keys() == {"torchvision"}
    errors = capsys.readouterr().err
    for row in ("ours, compiled, int8", "ONNX Runtime, int8", "OpenVINO, int8"):
        assert f"{row} is left out: " in errors


def test_other_logits_stop_the_benchmark():
    wrong = nn.Sequential(nn.Flatten(), nn.Threshold(2, 1.01))
    rows = {"torchvision": nn.Flatten, "wrong": lambda: wrong}
    with pytest.raises(benchmark.click.ClickException, match="the logits of wrong differ by"):
        build(rows, ("float32",), torch.ones(1, 3))


def test_what_cannot_be_timed_is_one_line():
    assert "32 is not in the range" in refusal(main, "--image-size", 32)
    assert "File exists" in refusal(main, "--out", __file__)

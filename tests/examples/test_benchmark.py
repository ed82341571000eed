"""`python -m examples.benchmark` times what it says, and computes its ratios from that."""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

for package in ("click", "pandas", "tabulate", "lightning_fabric", "matplotlib", "tqdm"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from examples import benchmark, engines  # noqa: E402

EAGER = ["torchvision", "torchvision, channels-last", "ours", "ours, channels-last"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(benchmark.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The times of a small run, in which nothing is compiled or exported, and its tables."""
    out, rows = tmp_path_factory.mktemp("benchmark") / "out", benchmark.implementations
    with pytest.MonkeyPatch.context() as patch:
        plain = lambda *given: dict(list(rows(*given).items())[:5])  # noqa: E731
        patch.setattr(benchmark, "implementations", plain)
        small = "--model resnet18 --precision float32 --image-size 64 --seconds 0 --batch-size"
        status, tables, _ = run(*small.split(), 1, "--batch-size", 2, "--out", out)
    assert status == 0
    assert (out / "table.md").read_text(encoding="utf-8") == tables
    with Image.open(out / "time.png") as picture:
        assert min(picture.size) >= 300
    return pd.DataFrame(json.loads((out / "times.json").read_text())), tables


def test_every_row_is_timed_in_turns_and_stands_in_the_table(report):
    times, tables = report
    fused = "ours, fused, channels-last"
    for task, batch_size, rows in [
        ("inference", 1, [*EAGER, fused]),
        ("inference", 2, [*EAGER, fused]),
        ("training step", 16, EAGER),
    ]:
        turns = times[times["task"].eq(task) & times["batch_size"].eq(batch_size)]
        assert list(turns["row"]) == rows * (len(turns) // len(rows))
        assert len(turns) >= 3 * len(rows)
        medians = turns.groupby("row")["ms"].median()
        for row in rows:
            cell = f"{medians[row]:.1f}, {medians['torchvision'] / medians[row]:.2f}"
            assert re.search(rf"\| {row} .*\| {cell} ", tables)
    assert f"torch {torch.__version__}" in times["machine"][0]
    assert times["machine"][0] in tables


@pytest.fixture
def networks(tmp_path):
    """A function that builds the rows of a precision for a network at a small size."""

    def build(precision: str) -> dict:
        torch.manual_seed(0)
        theirs = benchmark.torchvision.models.resnet18().eval()
        ours = benchmark.MODELS["resnet18"].from_state_dict(theirs.state_dict()).eval()
        images = benchmark.photographs(64)
        rows = engines.implementations(theirs, ours, images, tmp_path)
        return benchmark.build(rows, (precision,), images)

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    "precision, rows",
    [
        ("float32", ["ours, compiled", "ONNX Runtime", "OpenVINO"]),
        ("bfloat16", ["ours, compiled, bfloat16", "OpenVINO, bfloat16"]),
        ("int8", ["ours, compiled, int8", "ONNX Runtime, int8", "OpenVINO, int8"]),
    ],
)
def test_every_engine_gives_the_logits(precision, rows, networks):
    for package in ("onnxruntime", "onnxscript", "openvino", "torchao"):
        pytest.importorskip(package)
    assert set(rows) < networks(precision).keys()


def test_an_engine_that_is_not_installed_is_named_and_left_out(networks, monkeypatch, capsys):
    for package in ("openvino", "onnxruntime", "torchao"):
        monkeypatch.setitem(sys.modules, package, None)
    assert networks("int8").keys() == {"torchvision"}
    errors = capsys.readouterr().err
    for row in ("ours, compiled, int8", "ONNX Runtime, int8", "OpenVINO, int8"):
        assert f"{row} is left out: " in errors


def test_other_logits_stop_the_benchmark():
    theirs = nn.Flatten()
    wrong = nn.Sequential(theirs, nn.Threshold(2, 1.01))
    rows = {"torchvision": lambda: theirs, "wrong": lambda: wrong}
    with pytest.raises(benchmark.click.ClickException, match="the logits of wrong differ by"):
        benchmark.build(rows, ("float32",), torch.ones(1, 3))


@pytest.mark.parametrize(
    "given, words",
    [
        ("--out pyproject.toml", "File exists"),
        ("--image-size 32", "32 is not in the range"),
        ("--seconds nan", "'nan' is not a valid integer"),
    ],
)
def test_what_cannot_be_timed_is_one_line(given, words, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    status, stdout, stderr = run(*given.split())
    assert (status, stdout, stderr.count("\n")) == (1, "", 1)
    assert words in stderr


@pytest.mark.parametrize("recipe", [engines.compiled, engines.in_int8])
def test_the_page_has_the_lines_that_are_timed(recipe):
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
    lines = textwrap.dedent(inspect.getsource(recipe).split('"""\n')[1]).splitlines()
    assert [line for line in lines if line not in page] == ["return fast"]

"""`python -m examples.benchmark` times what it says, and computes its ratios from that."""

from __future__ import annotations

import inspect
import json
import sys
import textwrap
from pathlib import Path
from statistics import median

import pytest
import torch
from PIL import Image
from torch import nn

for package in ("click", "pandas", "tabulate", "lightning_fabric", "matplotlib", "tqdm"):
    pytest.importorskip(package)

from click.testing import CliRunner  # noqa: E402

from examples import benchmark, engines  # noqa: E402

SMALL = "--model resnet18 --batch-size 1 --batch-size 2 --image-size 64 --seconds 0.5"
PLAIN = ["torchvision", "torchvision, channels-last", "ours", "ours, channels-last"]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(benchmark.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The figures of a small run, in which nothing is compiled or exported."""
    folder = tmp_path_factory.mktemp("benchmark")
    rows, files = benchmark.implementations, [folder / name for name in ("json", "md", "plot.png")]
    with pytest.MonkeyPatch.context() as patch:
        plain = lambda *given: (row for row, _ in zip(rows(*given), range(5)))  # noqa: E731
        patch.setattr(benchmark, "implementations", plain)
        kinds = ("--json", "--markdown", "--plot")
        given = [word for pair in zip(kinds, files) for word in pair]
        status, tables, _ = run(*SMALL.split(), "--precision", "float32", *given)
    assert status == 0
    assert files[1].read_text() == tables
    with Image.open(files[2]) as picture:
        assert min(picture.size) >= 300
    return json.loads(files[0].read_text()), tables


def test_every_row_stands_in_the_table_for_every_batch_size(report):
    figures, tables = report
    rows = {(figure["task"], figure["batch_size"], figure["row"]) for figure in figures}
    fused = "ours, fused, channels-last"
    assert {("inference", batch, row) for batch in (1, 2) for row in [*PLAIN, fused]} <= rows
    assert {("training step", 16, row) for row in PLAIN} <= rows
    assert all(f"| {row} " in tables for _, _, row in rows)
    assert f"torch {torch.__version__}" in figures[0]["machine"]


def test_ratios_are_computed_from_what_was_timed(report):
    figures, tables = report
    times = {(f["task"], f["batch_size"], f["row"]): median(f["rounds"]) for f in figures}
    for (task, batch_size, row), figure in zip(times, figures):
        assert len(figure["rounds"]) >= 3
        ratio = times[task, batch_size, "torchvision"] / times[task, batch_size, row]
        milliseconds = 1e3 * times[task, batch_size, row]
        assert [figure["ms"], figure["times_torchvision"]] == pytest.approx([milliseconds, ratio])
        assert f"| {milliseconds:.1f}, {ratio:.2f} " in tables


@pytest.fixture
def networks(tmp_path):
    """A function that builds the rows of a precision for a small network."""

    def build(*precisions: str) -> dict:
        torch.manual_seed(0)
        ours = benchmark.MODELS["resnet18"](num_classes=3).eval()
        images = benchmark.photographs(64)
        theirs, file = engines.twin("resnet18", ours), tmp_path / "network.onnx"
        rows = engines.implementations(theirs, ours, images, file)
        return benchmark.build(rows, precisions, images)[0]

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
    for package in ("onnxruntime", "onnxscript", "openvino", "nncf", "torchao"):
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
    rows = [("float32", "torchvision", lambda: theirs), ("float32", "wrong", lambda: wrong)]
    with pytest.raises(benchmark.click.ClickException, match="the logits of wrong differ by"):
        benchmark.build(rows, ("float32",), torch.ones(1, 3))


def test_the_rows_take_turns():
    order = []
    benchmark.time_in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0)
    turns = "".join(order)
    assert turns.replace("aa", "a").count("ab") >= 3


def test_accuracy_counts_every_image_once():
    images = [(torch.full((3, 2, 2), value, dtype=torch.uint8), value % 2) for value in range(5)]
    val = type(
        "Val", (), {"__len__": lambda _: 5, "__getitem__": lambda _, item: images[item[0]]}
    )()
    zero = lambda images: torch.eye(2)[[0] * len(images)]  # noqa: E731
    one = lambda images: torch.eye(2)[[1] * len(images)]  # noqa: E731
    table = benchmark.accuracy({"torchvision": zero, "other": one}, val, 2, "cpu")
    assert table.loc["torchvision"].tolist() == [60, 100]
    assert table.loc["other"].tolist() == [40, 0]


@pytest.mark.parametrize(
    "given, words",
    [
        ("--json none/figures.json", "there is no folder none"),
        ("--weights model.pt", "--weights and --data go together"),
        ("--weights model.pt --data data", "cannot read model.pt"),
        ("--image-size 32", "32 is not in the range"),
    ],
)
def test_what_cannot_be_timed_is_one_line(given, words):
    status, stdout, stderr = run(*given.split())
    assert (status, stdout, stderr.count("\n")) == (1, "", 1)
    assert words in stderr


@pytest.mark.parametrize("recipe", [engines.compiled, engines.in_int8])
def test_the_page_has_the_lines_that_are_timed(recipe):
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
    lines = textwrap.dedent(inspect.getsource(recipe).split('"""\n')[1]).splitlines()
    assert [line for line in lines if line not in page] == ["return fast"]

"""`python -m examples.benchmark` times what it says, and computes its ratios from that."""

from __future__ import annotations

import json
from statistics import median

import pytest
import torch
from torch import nn

for package in ("click", "pandas", "tabulate"):
    pytest.importorskip(package)

import click  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from examples import benchmark  # noqa: E402


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The figures and the tables of a small run."""
    folder = tmp_path_factory.mktemp("benchmark")
    files = {kind: folder / kind for kind in ("json", "markdown")}
    small = "--model resnet18 --batch-size 1 --batch-size 2 --image-size 64 --seconds 1 --eager"
    paths = ["--json", str(files["json"]), "--markdown", str(files["markdown"])]
    assert CliRunner().invoke(benchmark.main, [*small.split(), *paths]).exit_code == 0
    return json.loads(files["json"].read_text()), files["markdown"].read_text()


def test_every_implementation_stands_in_the_table(report):
    figures, tables = report
    rows = {(figure["task"], figure["implementation"]) for figure in figures["figures"]}
    for implementation in (
        "torchvision",
        "torchvision, channels-last",
        "ours",
        "ours, channels-last",
    ):
        assert ("inference", implementation) in rows
        assert ("training step", implementation) in rows
        assert f"| {implementation} " in tables
    assert {
        ("inference", row) for row in ("ours, fused, channels-last", "timm", "ONNX Runtime")
    } <= rows
    assert figures["machine"]["torch"] == f"torch {torch.__version__}"


def test_ratios_rates_and_shares_are_computed_from_what_was_timed(report):
    figures, tables = report
    baseline = {
        (figure["task"], figure["batch_size"]): median(figure["rounds"])
        for figure in figures["figures"]
        if figure["implementation"] == "torchvision"
    }
    operations = {}
    for figure in figures["figures"]:
        assert len(figure["rounds"]) >= 3
        assert min(figure["rounds"]) > 0
        seconds = median(figure["rounds"])
        assert figure["seconds"] == seconds
        column = figure["task"], figure["batch_size"]
        assert figure["ratio"] == pytest.approx(baseline[column] / seconds)
        operations.setdefault(column, []).append(figure["gigaflops"] * seconds)
        dtype = "bfloat16" if "bfloat16" in figure["implementation"] else "float32"
        share = figure["gigaflops"] * 1e9 / figures["limits"][dtype]
        assert figure["share"] == pytest.approx(share)
        cell = f"{seconds * 1e3:.1f}, {figure['ratio']:.2f}, {share:.0%}"
        assert cell in tables
    for same in operations.values():
        assert same == pytest.approx([same[0]] * len(same))
    assert operations["inference", 2][0] == pytest.approx(2 * operations["inference", 1][0])


def test_a_peer_that_is_not_installed_is_named_and_left_out(monkeypatch, capsys):
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    networks = benchmark.inference_networks("resnet18", 64, torch.device("cpu"), eager=True)
    assert not {"timm", "ONNX Runtime"} & networks.keys()
    assert "timm is not installed and left out" in capsys.readouterr().err


def test_other_logits_stop_the_benchmark():
    theirs = nn.Flatten()
    with pytest.raises(click.ClickException, match="the logits of wrong differ by"):
        benchmark.inference(
            {"torchvision": theirs, "wrong": lambda x: theirs(x) * 1.01}, torch.ones(1, 3)
        )


def test_the_rows_take_turns():
    order = []
    benchmark.time_in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0)
    turns = "".join(order)
    assert turns.replace("aa", "a").count("ab") >= 3


def test_a_missing_folder_is_one_line_before_anything_is_timed(tmp_path):
    given = ["--json", str(tmp_path / "none" / "figures.json")]
    result = CliRunner().invoke(benchmark.main, given)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)

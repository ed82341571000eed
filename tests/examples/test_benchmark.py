"""`python -m examples.benchmark` times what it says, and stops at wrong logits."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

for package in ("tyro", "pandas", "tabulate", "matplotlib"):
    pytest.importorskip(package)

from examples import benchmark, engines  # noqa: E402
from examples.benchmark import (  # noqa: E402
    Row,
    build_network,
    build_rows,
    choose_rows,
    define_rows,
    load_images,
    main,
)
from examples.lib import compare  # noqa: E402
from examples.lib.command import UserError  # noqa: E402
from tests.examples.command import refusal  # noqa: E402
from tests.oracle import MODELS  # noqa: E402

ROOT = Path(__file__).parents[2]
ENGINES = ["openvino", "nncf", "onnx", "onnxruntime", "onnxscript", "torchao"]


# A run without a C++ compiler and without any engine


@pytest.fixture(scope="module")
def bare_run(tmp_path_factory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("benchmark")
    hide_engines = f"import sys; sys.modules.update(dict.fromkeys({ENGINES}))"
    command = "from examples.benchmark import main; from examples.lib.command import run; run(main)"
    arguments = (
        "--model resnet18 --precision float32 --image-size 64 --batch-size 1 2 --seconds 0 --out"
    )
    environment = {
        **os.environ,
        "PATH": str(folder),
        "CXX": str(folder / "g++"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
    }
    run = subprocess.run(
        [sys.executable, "-c", f"{hide_engines}; {command}", *arguments.split(), folder / "out"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return run, folder / "out"


def table_lines(text: str) -> dict[str, list[str]]:
    """Return the cells of each row of the table, by its name."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines[1:]}


def test_missing_engines_and_compiler_cost_only_their_rows(bare_run):
    run, _ = bare_run
    assert run.returncode == 0, run.stderr
    assert list(table_lines(run.stdout)) == ["torchvision", "ours", "ours, channels-last"]
    for name in ("torchvision, compiled", "ours, compiled", "ONNX Runtime", "OpenVINO"):
        assert f"{name} (float32) is left out: " in run.stderr


def test_table_has_the_medians_of_times_json(bare_run):
    run, out = bare_run
    assert run.stdout == (out / "table.md").read_text(encoding="utf-8")
    results = json.loads((out / "times.json").read_text())
    medians = {
        (result["row"], result["batch_size"]): statistics.median(result["milliseconds"])
        for result in results
    }
    assert len(medians) == 6
    for row in ("torchvision", "ours", "ours, channels-last"):
        cells = [
            f"{medians[row, size]:.1f}, {medians['torchvision', size] / medians[row, size]:.2f}"
            for size in (1, 2)
        ]
        assert table_lines(run.stdout)[row] == ["float32", *cells]
    assert {result["machine"] for result in results} == {run.stdout.splitlines()[0]}
    assert f"torch {torch.__version__}" in run.stdout
    assert min(len(result["milliseconds"]) for result in results) >= 3


def test_picture_is_written(bare_run):
    _, out = bare_run
    assert min(Image.open(out / "speed.png").size) >= 300


# Which rows are built


@pytest.fixture
def all_rows(tmp_path) -> list[Row]:
    return define_rows(nn.Identity(), nn.Identity(), torch.zeros(1, 3, 64, 64), tmp_path)


def test_a_processor_without_bfloat16_costs_its_rows(all_rows, monkeypatch, capsys):
    monkeypatch.setattr(engines, "capabilities", lambda: {"avx2": True})
    chosen = choose_rows(all_rows, ("bfloat16", "int8"), "cpu")
    assert {row.precision for row in chosen[1:]} == {"int8"}
    errors = capsys.readouterr().err
    assert "ours, compiled (bfloat16) is left out" in errors
    assert "OpenVINO (bfloat16) is left out" in errors


def test_a_precision_is_timed_beside_eager_torchvision(all_rows):
    chosen = choose_rows(all_rows, ("float32",), "cpu")
    assert chosen[0].name == "torchvision"
    assert {row.precision for row in chosen} == {"float32"}
    chosen = choose_rows(all_rows, ("int8",), "cpu")
    assert [row.name for row in chosen] == [
        "torchvision",
        "ours, compiled",
        "ONNX Runtime",
        "OpenVINO",
    ]


@pytest.mark.parametrize("name, batch_size", [("alexnet", 1), ("resnet18", 16)])
def test_every_row_has_the_logits(name, batch_size, tmp_path):
    for package in ENGINES:
        pytest.importorskip(package)
    images = load_images(size=64, count=16)
    theirs = build_network(name, images)
    ours = MODELS[name].from_state_dict(theirs.state_dict()).eval()
    every_row = define_rows(theirs, ours, images[:8], tmp_path)
    assert list(build_rows(every_row, images, batch_size)) == every_row


# The check of the logits


@pytest.fixture(scope="module")
def images() -> Tensor:
    return load_images(size=64, count=16)


@pytest.fixture(scope="module")
def eager(name, images) -> tuple[Row, Row]:
    """The row of torchvision, and ours in int8, whose tolerance is the widest."""
    theirs = build_network(name, images)
    ours = MODELS[name].from_state_dict(theirs.state_dict()).eval()
    return Row("torchvision", "float32", lambda: theirs), in_int8(ours, images)


def in_int8(network: nn.Module, images: Tensor) -> Row:
    """Return a row that is not compiled."""
    fast = engines.to_int8(network, images[:8])
    return Row("ours", "int8", lambda: fast)


def build(rows: list[Row], images: Tensor) -> list[Row]:
    return list(build_rows(rows, images, batch_size=8))


def expect_refusal(rows: list[Row], images: Tensor) -> None:
    with pytest.raises(UserError, match=f"the logits of ours .{rows[1].precision}. are"):
        build(rows, images)


def test_right_logits_pass(eager, images):
    assert build(list(eager), images) == list(eager)


def test_logits_of_the_next_image_are_refused(eager, images):
    theirs, ours = eager
    network = ours.build()
    wrong = Row("ours", ours.precision, lambda: lambda batch: network(batch).roll(1, 0))
    expect_refusal([theirs, wrong], images)


def test_logits_of_another_image_in_one_place_are_refused(eager, images):
    theirs, ours = eager
    network = ours.build()

    def repeat_the_first(batch: Tensor) -> Tensor:
        logits = network(batch).clone()
        logits[1] = logits[0]
        return logits

    wrong = Row("ours", ours.precision, lambda: repeat_the_first)
    expect_refusal([theirs, wrong], images)


def test_swapped_color_channels_are_refused(eager, images):
    theirs, ours = eager
    network = ours.build()
    wrong = Row("ours", ours.precision, lambda: lambda batch: network(batch.flip(1)))
    expect_refusal([theirs, wrong], images)


def test_another_network_is_refused(name, eager, images):
    theirs, _ = eager
    weights = build_network(name, images, seed=1).state_dict()
    other = MODELS[name].from_state_dict(weights).eval()
    expect_refusal([theirs, in_int8(other, images)], images)


def test_logits_that_are_not_finite_are_refused(eager, images):
    theirs, ours = eager
    wrong = Row("ours", ours.precision, lambda: lambda batch: theirs.build()(batch) * torch.nan)
    expect_refusal([theirs, wrong], images)


# What is timed


def test_the_first_call_of_a_turn_is_not_counted(monkeypatch):
    clock = 0.0

    def call() -> None:
        nonlocal clock
        clock += next(durations)

    monkeypatch.setattr(compare.time, "perf_counter", lambda: clock)
    for first, later in (0.9, 0.2), (0.09, 0.03):  # a slow row, and one timed several times
        durations = itertools.chain([first], itertools.repeat(later))
        milliseconds = compare.milliseconds_per_call(call)
        assert milliseconds == pytest.approx(1e3 * later)


def test_a_call_takes_until_the_device_has_finished(monkeypatch):
    waited_for = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited_for.append)
    images = torch.zeros(1, device="meta")  # in the place of a GPU
    row = Row("ours", "float32", lambda: nn.Identity())
    times = benchmark.time_networks({row: row.build()}, images, seconds=0)
    assert set(waited_for) == {images.device}
    assert len(waited_for) > len(times[row]) == compare.MIN_ROUNDS


# What the command refuses


def test_small_images_are_refused():
    assert "--image-size must be at least 63" in refusal(main, "--image-size", 32)


def test_empty_batches_are_refused():
    assert "--batch-size must be at least 1" in refusal(main, "--batch-size", 0)


def test_a_file_is_no_folder_for_the_results():
    assert f"cannot write to the folder {__file__}" in refusal(main, "--out", __file__)


def test_an_unknown_device_is_refused():
    assert "--device abacus" in refusal(main, "--device", "abacus")

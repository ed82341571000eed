"""`python -m examples.train --resume` continues a run as if it had never been stopped."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402

from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.train import main  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402
from tests.examples.training import (  # noqa: E402
    TIMEOUT,
    TORCHRUN,
    arguments,
    contents,
    run,
    start,
    wait_for_line,
)


def stopped(finished: Path, folder: Path, epochs: int = 1) -> Path:
    """Return a copy of a run as if it had been stopped after so many epochs."""
    out = shutil.copytree(finished, folder)
    checkpoint = read_checkpoint(out / "last.ckpt")
    del checkpoint["rows"][epochs:]
    torch.save(checkpoint, out / "last.ckpt")
    return out


@pytest.mark.parametrize(
    "options, launcher, last_line",
    [
        ("", (), "resnet18"),
        ("", (), "epoch 1"),
        ("--image-size 64", TORCHRUN, "epoch 1"),
    ],
    ids=["in the first epoch", "resnet18", "two_processes"],
)
def test_resume_alone_after_sigkill_is_bit_identical(
    options, launcher, last_line, finished, digits, tmp_path
):
    whole, out, more = finished, tmp_path / "run", options.split()
    if options:
        whole = tmp_path / "whole"
        assert run(*arguments(digits, whole, *more), launcher=launcher)[0] == 0

    process = start(*arguments(digits, out, *more), launcher=launcher)
    wait_for_line(process, last_line)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)

    status, stdout, stderr = run("--resume", "--out", out, launcher=launcher)
    assert status == 0, stderr
    if last_line == "resnet18":
        assert "was stopped in its first epoch and starts again" in stdout
    for part in "network", "optimizer":
        expected, resumed = (read_checkpoint(f / "last.ckpt")[part] for f in (whole, out))
        torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
    assert contents(out)["model.pt"] == contents(whole)["model.pt"]
    assert list(pd.read_csv(out / "metrics.csv")["epoch"]) == [1, 2]


def test_options_can_be_given_again(finished, digits, tmp_path):
    out = stopped(finished, tmp_path / "run")
    checkpoint = read_checkpoint(out / "last.ckpt")
    checkpoint["config"] |= {"pretrained": True, "lr": 0.001}
    torch.save(checkpoint, out / "last.ckpt")
    more = "--pretrained", "--lr", 0.001, "--resume"
    result = call(main, *arguments(digits, out, *more))
    assert result.status == 0, result
    assert "continues after epoch 1/2" in result.stdout.splitlines()[1]
    assert "learning rate 0.001" in result.stdout.splitlines()[0]


@pytest.mark.parametrize("first_top1, is_replaced", [(101, False), (0, True)])
def test_weights_are_those_of_the_best_epoch(first_top1, is_replaced, finished, tmp_path):
    out = stopped(finished, tmp_path / "run")
    (out / "model.pt").write_text("weights of the first epoch")
    checkpoint = read_checkpoint(out / "last.ckpt")
    checkpoint["rows"][0]["val_top1"] = first_top1
    torch.save(checkpoint, out / "last.ckpt")
    assert call(main, "--resume", "--out", out).status == 0
    replaced = (out / "model.pt").read_bytes() != b"weights of the first epoch"
    assert replaced == is_replaced


def test_resume_finds_a_moved_run_and_moved_data(finished, data, tmp_path):
    out = stopped(finished, tmp_path / "moved")
    result = call(main, data, "--resume", "--out", out)
    assert result.status == 0, result
    assert len(read_checkpoint(out / "last.ckpt")["rows"]) == 2


def test_resume_does_not_need_the_weights_that_the_run_started_from(finished, digits, tmp_path):
    weights = Path(shutil.copy(finished / "model.pt", tmp_path / "start.pt"))
    first = call(main, *arguments(digits, tmp_path / "first", "--weights", weights))
    assert first.status == 0, first
    out = stopped(tmp_path / "first", tmp_path / "run")
    weights.unlink()
    assert call(main, "--resume", "--out", out).status == 0
    assert list(pd.read_csv(out / "metrics.csv")["epoch"]) == [1, 2]


def test_resume_where_no_run_was_started_names_the_folder(digits, tmp_path):
    line = refusal(main, digits, "--out", tmp_path / "bsae", "--resume")
    assert f"no run to resume in {tmp_path / 'bsae'}" in line
    assert not (tmp_path / "bsae").exists()


def test_run_with_a_finished_epoch_is_not_overwritten(finished, digits):
    before = contents(finished)
    line = refusal(main, *arguments(digits, finished))
    assert "already holds a run: add --resume or choose another --out" in line
    assert contents(finished) == before


def test_run_without_a_finished_epoch_can_be_started_anew_with_other_options(
    finished, digits, tmp_path
):
    out = stopped(finished, tmp_path / "run", epochs=0)
    result = call(main, *arguments(digits, out, "--epochs", 1, "--lr", 0.01))
    assert result.status == 0, result
    assert "learning rate 0.01" in result.stdout


@pytest.mark.parametrize(
    "given, words",
    [
        ("--model alexnet --image-size 64", "used --model resnet18, not alexnet"),
        ("--epochs 3", "used --epochs 2, not 3"),
        ("--image-size 33", "used --image-size 32, not 33"),
        ("--batch-size 16", "used --batch-size 8, not 16"),
        ("--lr 0.2", "used --lr 0.003125, not 0.2"),
        ("--weight-decay 0", "used --weight-decay 0.0001, not 0"),
        ("--label-smoothing 0.1", "used --label-smoothing 0.0, not 0.1"),
        ("--precision bfloat16", "used --precision float32, not bfloat16"),
        ("--seed 1", "used --seed 0, not 1"),
        ("--pretrained", "used --pretrained False, not True"),
        ("--weights file", "used --weights None, not file"),
    ],
)
def test_resume_rejects_changed_options(given, words, finished, tmp_path):
    out = stopped(finished, tmp_path / "run")
    before = contents(out)
    assert words in refusal(main, "--resume", "--out", out, *given.split())
    assert contents(out) == before


def test_more_epochs_than_an_ended_run_had_are_refused_with_the_way_out(finished):
    line = refusal(main, "--resume", "--out", finished, "--epochs", 5)
    assert "has ended after its 2 epochs" in line
    assert f"start a new run with --weights {finished / 'model.pt'}" in line


def test_resume_of_an_ended_run_trains_nothing_more(finished):
    before = contents(finished)
    result = call(main, "--resume", "--out", finished)
    assert result.status == 0
    assert "has ended after its 2 epochs" in result.stdout.splitlines()[1]
    assert contents(finished) == before
    assert (
        result.stdout.splitlines()[2:]
        == (
            (finished.parent / "stdout").read_text().splitlines()[4:]  # the judgment
        )
    )


def test_resume_rejects_another_number_of_processes(finished, tmp_path):
    checkpoint = read_checkpoint(finished / "last.ckpt")
    checkpoint["processes"] = 2
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert "used 2 process(es), not 1" in refusal(main, "--resume", "--out", tmp_path)


def test_resume_rejects_other_images(finished, data):
    (data / "train" / "3" / "0.png").rename(data / "train" / "3" / "other.png")
    assert "used 84 + 33 images" in refusal(main, data, "--resume", "--out", finished)


def test_resume_rejects_a_damaged_checkpoint(finished, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes()[:-1000])
    assert "last.ckpt is damaged" in refusal(main, "--resume", "--out", tmp_path)


def test_resume_rejects_a_checkpoint_of_another_version(finished, tmp_path):
    checkpoint = read_checkpoint(finished / "last.ckpt")
    checkpoint["config"]["compile"] = False
    torch.save(checkpoint, tmp_path / "last.ckpt")
    line = refusal(main, "--resume", "--out", tmp_path)
    assert f"start a new run with --weights {tmp_path / 'last.ckpt'}" in line


@pytest.mark.parametrize("spoil", ["a weight that is not a number", "a learning rate of 1e30"])
def test_loss_that_is_not_finite_stops_before_anything_is_overwritten(spoil, finished, tmp_path):
    out = stopped(finished, tmp_path / "run")
    checkpoint = read_checkpoint(out / "last.ckpt")
    if spoil == "a learning rate of 1e30":
        checkpoint["config"]["lr"] = 1e30
    else:
        checkpoint["network"]["fc.bias"][0] = float("nan")
    torch.save(checkpoint, out / "last.ckpt")
    before = contents(out)
    line = refusal(main, "--resume", "--out", out)
    assert "the training loss is not finite" in line
    assert "epoch 2" in line
    assert contents(out) == before

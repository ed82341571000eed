"""A run survives what happens to its processes and its files, and a second command."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn", "psutil"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402
import psutil  # noqa: E402

from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.train import main  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402
from tests.examples.test_resume import stopped  # noqa: E402
from tests.examples.training import (  # noqa: E402
    TIMEOUT,
    TORCHRUN,
    arguments,
    contents,
    run,
    start,
    wait_for_line,
)


def training_process(torchrun, rank: int) -> psutil.Process:
    """Return the process of this rank that torchrun has started."""
    for child in psutil.Process(torchrun.pid).children():
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError("no such process")


def same_weights(one: Path, other: Path) -> None:
    networks = (read_checkpoint(out / "last.ckpt")["network"] for out in (one, other))
    torch.testing.assert_close(*networks, rtol=0, atol=0)
    assert (one / "model.pt").read_bytes() == (other / "model.pt").read_bytes()


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory) -> Path:
    """The folder of a run in two processes that nothing has disturbed."""
    out = tmp_path_factory.mktemp("whole") / "run"
    status, _, stderr = run(*arguments(digits, out, "--epochs", 4), launcher=TORCHRUN)
    assert status == 0, stderr
    return out


@pytest.mark.parametrize("ranks", [(1,), (0, 1)], ids=["once", "twice, rank 0 too"])
def test_torchrun_restarts_a_run_whose_process_was_killed_bit_for_bit(
    ranks, whole, digits, tmp_path
):
    given = arguments(digits, tmp_path / "run", "--epochs", 4)
    process = start(*given, launcher=(*TORCHRUN, "--max-restarts", "2"))
    for epoch, rank in enumerate(ranks, start=2):
        wait_for_line(process, f"epoch {epoch}")
        training_process(process, rank).kill()
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, stderr
    same_weights(tmp_path / "run", whole)


def test_the_same_command_starts_a_run_and_continues_it(finished, digits, tmp_path):
    given = arguments(digits, tmp_path / "run", "--restartable")
    process = start(*given)
    wait_for_line(process, "epoch 1")
    process.kill()
    process.communicate(timeout=TIMEOUT)
    status, stdout, stderr = run(*given)
    assert (status, stderr) == (0, "")
    assert "continues after epoch 1/2" in stdout
    same_weights(tmp_path / "run", finished)


def test_a_second_run_into_the_same_folder_is_refused_at_once(digits, tmp_path):
    process = start(*arguments(digits, tmp_path / "run", "--epochs", 500))
    wait_for_line(process, "resnet18")  # no epoch has ended yet
    for more in (), ("--resume",), ("--restartable",):
        line = refusal(main, *arguments(digits, tmp_path / "run", "--epochs", 500, *more))
        assert f"another run is writing to {tmp_path / 'run'}" in line
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    result = call(main, *arguments(digits, tmp_path / "run", "--epochs", 1))
    assert result.status == 0, result  # the lock has died with its process


def test_weights_of_a_run_whose_checkpoint_was_deleted_are_not_overwritten(
    finished, digits, tmp_path
):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "last.ckpt").unlink()
    before = contents(out)
    assert "holds the weights of another run" in refusal(main, *arguments(digits, out))
    assert contents(out) == before


@pytest.mark.parametrize("epochs", [1, 2], ids=["stopped", "ended"])
def test_last_ckpt_alone_continues_to_weights_of_the_best_epoch_since(epochs, finished, tmp_path):
    stopped(finished, tmp_path / "run", epochs)
    out = tmp_path / "elsewhere"
    out.mkdir()
    shutil.copy(tmp_path / "run" / "last.ckpt", out)
    result = call(main, "--resume", "--out", out)
    assert result.status == 0, result
    assert f"note: {out} has no model.pt: the best of the epochs from {epochs} on" in result.stderr
    if epochs == 2:
        model, last = read_checkpoint(out / "model.pt"), read_checkpoint(out / "last.ckpt")
        torch.testing.assert_close(model["state_dict"], last["network"], rtol=0, atol=0)
    assert list(pd.read_csv(out / "metrics.csv")["epoch"]) == [1, 2]


def test_a_table_that_cannot_be_written_costs_a_note_and_no_epoch(digits, tmp_path):
    out = tmp_path / "run"
    (out / "metrics.csv").mkdir(parents=True)  # as if another program had it
    (out / "curves.png").mkdir()
    result = call(main, *arguments(digits, out, "--epochs", 1))
    assert result.status == 0, result
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert [note.split()[1] for note in notes] == ["metrics.csv", "curves.png"]
    assert (out / "model.pt").exists()


def test_tasks_of_srun_without_torchrun_are_refused(digits, tmp_path):
    status, _, stderr = run(*arguments(digits, tmp_path / "run"), SLURM_STEP_NUM_TASKS="4")
    assert status == 1
    assert stderr.startswith("error: srun has started 4 tasks that know nothing of each other")
    assert not (tmp_path / "run").exists()

"""A run that is stopped, or cannot write, ends with one line and leaves nothing half written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.train import main  # noqa: E402
from tests.examples.command import refusal  # noqa: E402
from tests.examples.training import (  # noqa: E402
    ROOT,
    TIMEOUT,
    arguments,
    start,
    wait_for_line,
)

INTERRUPTED = "interrupted: --resume continues a run after its last finished epoch\n"


def on_terminal(pexpect, *arguments: object, command: str = "train"):
    """Start a command on a terminal."""
    return pexpect.spawn(
        sys.executable,
        ["-m", f"examples.{command}", *map(str, arguments)],
        cwd=ROOT,
        timeout=TIMEOUT,
        dimensions=(24, 120),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


# Interrupts a loader again and again, at random times: an interrupt must come while a batch is
# handed over, which it seldom does.
INTERRUPTIONS = """
import os, random, signal, threading
from PIL import Image
from examples.lib.loaders import CenterCrops, validation_loader

crops = CenterCrops([(Image.new("RGB", (8, 8)), 0)] * 40_000, size=8, resize_size=8)
caught = 0
for _ in range(20):
    loader = validation_loader(crops, len(crops), batch_size=4, workers=1)
    batches = iter(loader)
    next(batches)
    try:
        seconds = random.uniform(0.01, 0.1)
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
        for _ in batches:
            pass
    except KeyboardInterrupt:
        caught += 1
    threading.Event().wait(0.05)  # for the worker to lose the connection
    del batches, loader
print(caught)
"""


def test_worker_prints_nothing_when_ctrl_c_comes_while_it_hands_over_a_batch():
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTIONS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # as in a terminal
    )
    assert (result.stdout, result.stderr) == ("20\n", "")


@pytest.mark.parametrize(
    "start_method, to_all",
    [("fork", False), ("forkserver", True)],
    ids=["to the command", "to its workers too"],
)
def test_sigterm_ends_a_run_in_one_line_and_keeps_the_last_finished_epoch(
    start_method, to_all, digits, tmp_path
):
    endless = arguments(digits, tmp_path, "--epochs", 500, "--workers", 2)
    process = start(*endless, start_method=start_method)
    wait_for_line(process, "epoch 2")
    if to_all:  # as Slurm does
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, stderr) == (-signal.SIGINT, INTERRUPTED)
    assert len(read_checkpoint(tmp_path / "last.ckpt")["rows"]) >= 2
    assert not list(tmp_path.glob("*.tmp"))


def test_sigterm_while_the_checkpoint_is_written_leaves_the_one_before(digits, tmp_path):
    process = start(*arguments(digits, tmp_path, "--epochs", 500))
    wait_for_line(process, "epoch 1")
    while process.poll() is None and not (tmp_path / "last.ckpt.tmp").exists():
        time.sleep(0.001)
    process.terminate()
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, stderr) == (-signal.SIGINT, INTERRUPTED)
    assert len(read_checkpoint(tmp_path / "last.ckpt")["rows"]) >= 1
    assert not list(tmp_path.glob("*.tmp"))


def test_terminal_shows_loss_rate_and_speed_and_ctrl_c_leaves_a_checkpoint(digits, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    endless = arguments(digits, tmp_path / "run", "--epochs", 500, "--workers", 1)
    terminal = on_terminal(pexpect, *endless)
    terminal.expect("images/s, loss=.*lr=")
    terminal.expect("epoch 2/500: +[1-9]")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.signalstatus == signal.SIGINT
    assert b"Traceback" not in terminal.before
    assert b"interrupted: --resume continues" in terminal.before
    assert len(read_checkpoint(tmp_path / "run" / "last.ckpt")["rows"]) >= 1


def test_ctrl_c_while_weights_are_evaluated_does_not_speak_of_resume(finished, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    for name in "013":  # the classes of the weights
        (tmp_path / "val" / name).mkdir(parents=True)
        for number in range(400):
            (tmp_path / "val" / name / f"{number}.jpg").symlink_to(ROOT / "docs" / "cat.jpg")
    given = tmp_path, "--weights", finished / "model.pt"
    terminal = on_terminal(pexpect, *given, command="evaluate")
    terminal.expect("validation: +[1-9]")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.signalstatus == signal.SIGINT
    assert terminal.before.endswith(b"interrupted\r\n")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="/proc belongs to Linux")
def test_folder_that_cannot_be_written_to_is_one_line_before_the_first_step(digits):
    line = refusal(main, *arguments(digits, Path("/proc")))
    assert line.startswith("error: cannot write to /proc: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full belongs to Linux")
def test_full_disk_is_one_line_and_leaves_nothing_half_written(digits, tmp_path):
    (tmp_path / "last.ckpt.tmp").symlink_to("/dev/full")
    line = refusal(main, *arguments(digits, tmp_path))
    assert line == f"error: cannot write {tmp_path}/last.ckpt: No space left on device\n"
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]  # it is empty

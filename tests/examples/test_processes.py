"""`torchrun -m examples.train` trains in several processes, which count every image once."""

import os
import subprocess
import sys

import pytest

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402

from examples.evaluate import main  # noqa: E402
from tests.examples.command import call  # noqa: E402
from tests.examples.training import ROOT, TIMEOUT, TORCHRUN, arguments, run  # noqa: E402

DOWNLOAD = """
import sys, time
from pathlib import Path
import torch
from examples.lib.distributed import join_processes, leave_processes, rank_0_first

file = Path(sys.argv[1])
join_processes(torch.device("cpu"))
with rank_0_first():
    if not file.exists():
        time.sleep(1)
        with file.open("a") as lines:
            lines.write("downloaded\\n")
assert file.exists()
leave_processes()
"""

# A thread of a training process, as those of torch.distributed, that holds a lock.
LOCK = """
import threading
from PIL import Image
from examples.lib.data import validation_loader

lock = threading.Lock()

class Images:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8)), int(lock.acquire(timeout=1))

if __name__ == "__main__":
    threading.Thread(target=lock.acquire).start()
    loader = validation_loader(Images(), size=8, resize_size=8, batch_size=2, workers=1)
    print([labels.tolist() for _, labels in loader])
"""


def test_two_processes_take_the_same_steps_and_validate_each_image_once(digits, finished, tmp_path):
    out = tmp_path / "run"
    status, stdout, stderr = run(*arguments(digits, out), launcher=TORCHRUN)
    assert status == 0, stderr
    assert "Warning" not in stderr, stderr
    assert len(stdout.splitlines()) == 3
    assert "in 2 processes" in stdout
    rows, single = pd.read_csv(out / "metrics.csv"), pd.read_csv(finished / "metrics.csv")
    assert list(rows["lr"]) == list(single["lr"])

    best = rows.loc[rows["val_top1"].idxmax()]
    result = call(main, digits, "--weights", out / "model.pt")
    assert result.stdout.startswith(f"top-1 {best.val_top1:.3f}%")
    assert f"loss {best.val_loss:.3f}: 33 images" in result.stdout

    given = digits, "--weights", out / "model.pt"
    assert run(*given, command="evaluate", launcher=TORCHRUN)[:2] == (0, result.stdout)


def test_only_one_process_downloads(tmp_path):
    script, file = tmp_path / "download.py", tmp_path / "file"
    script.write_text(DOWNLOAD)
    command = [sys.executable, *TORCHRUN, str(script), str(file)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=TIMEOUT, capture_output=True)
    assert file.read_text() == "downloaded\n"


def test_workers_of_several_processes_do_not_wait_for_a_lock_that_a_thread_holds(tmp_path):
    script = tmp_path / "lock.py"
    script.write_text(LOCK)
    result = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert (result.stdout, result.stderr) == ("[[1]]\n", "")


def test_batch_size_must_be_divisible_by_the_processes(digits, tmp_path):
    given = arguments(digits, tmp_path / "run", "--batch-size", 15)
    status, _, stderr = run(*given, WORLD_SIZE="2")
    assert status == 1
    assert stderr == "error: --batch-size 15 must be divisible by the 2 processes\n"


def test_world_size_without_torchrun_is_one_line(digits, tmp_path):
    status, _, stderr = run(*arguments(digits, tmp_path / "run"), WORLD_SIZE="2")
    assert status == 1
    assert stderr.startswith("error: the environment has WORLD_SIZE=2 without RANK, MASTER_ADDR")
    assert stderr.count("\n") == 1

"""`torchrun -m examples.train` trains in several processes, which count every image once."""

import os
import subprocess
import sys

import pytest

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402

from examples.evaluate import main  # noqa: E402
from examples.lib.checkpoints import read_checkpoint  # noqa: E402
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
from examples.lib.loaders import CenterCrops, validation_loader

lock = threading.Lock()

class Images:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Image.new("RGB", (8, 8)), int(lock.acquire(timeout=1))

if __name__ == "__main__":
    threading.Thread(target=lock.acquire).start()
    crops = CenterCrops(Images(), size=8, resize_size=8)
    loader = validation_loader(crops, len(crops), batch_size=2, workers=1)
    print([labels.tolist() for _, labels in loader])
"""


def test_two_processes_take_the_same_steps_and_validate_each_image_once(digits, finished, tmp_path):
    out = tmp_path / "run"
    status, stdout, stderr = run(*arguments(digits, out), launcher=TORCHRUN)
    assert status == 0, stderr
    assert "Warning" not in stderr, stderr
    assert [line.split(":")[0] for line in stdout.splitlines()[2:4]] == ["epoch 1/2", "epoch 2/2"]
    assert "in 2 processes" in stdout
    rows, single = pd.read_csv(out / "metrics.csv"), pd.read_csv(finished / "metrics.csv")
    assert list(rows["lr"]) == list(single["lr"])
    # Rank 0 judges the images of both: the files are those of one process, in the same order.
    given = digits, "--weights", out / "model.pt", "--out"
    result = call(main, *given, tmp_path / "judged")
    assert "of 33 images" in result.stdout
    _, judgment = stdout.split("on the validation images\n")
    assert judgment.splitlines()[:-1] == result.stdout.splitlines()[1:-1]
    both = tmp_path / "judged by both"
    status, again, _ = run(*given, both, command="evaluate", launcher=TORCHRUN)
    assert (status, again.splitlines()[:-1]) == (0, result.stdout.splitlines()[:-1])
    one, two = (pd.read_csv(out / "predictions.csv") for out in (tmp_path / "judged", both))
    pd.testing.assert_frame_equal(two, one, rtol=1e-3)  # of another batch, a logit is rounded


def test_two_processes_split_a_folder_and_train_its_last_layer_as_one_does(
    digits, finished, tmp_path
):
    given = digits / "train", "--weights", finished / "model.pt", "--freeze", "--epochs", 2
    more = "--image-size", 32, "--batch-size", 8, "--workers", 1, "--out"
    outs = tmp_path / "one", tmp_path / "two"
    for out, launcher in zip(outs, ((), TORCHRUN)):
        status, _, stderr = run(*given, *more, out, launcher=launcher)
        assert status == 0, stderr
    one, two = (read_checkpoint(out / "last.ckpt") for out in outs)
    assert one["selection"] == two["selection"]
    assert one["images"] == two["images"]


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

"""The number of DataLoader workers, and how they are started, change no bit of a run's result."""

import os
import signal

import numpy as np
import pytest
import torch

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

from examples.lib import loaders  # noqa: E402
from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.lib.data import find_image_files  # noqa: E402
from examples.lib.loaders import RandomCrops  # noqa: E402
from examples.train import main  # noqa: E402
from tests.examples.command import call  # noqa: E402
from tests.examples.training import (  # noqa: E402
    TIMEOUT,
    arguments,
    contents,
    run,
    start,
    wait_for_line,
)


@pytest.mark.parametrize(
    "model, workers, start_method, resumed",
    [
        ("resnet18", 0, "fork", False),
        ("resnet18", 3, "fork", False),
        ("resnet18", 3, "forkserver", True),
        # AlexNet has dropout, which draws from the generator of the training process.
        ("alexnet", 3, "forkserver", True),
    ],
)
def test_workers_and_their_start_method_change_no_bit(
    model, workers, start_method, resumed, finished, digits, tmp_path, request
):
    whole, out, more = finished, tmp_path / "run", []
    if model == "alexnet":
        whole, more = request.getfixturevalue("alexnet"), ["--model", model, "--image-size", 64]

    if resumed:  # with one worker for the first epoch
        process = start(*arguments(digits, out, *more))
        wait_for_line(process, "epoch 1")
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT)
        more = [*more, "--resume"]

    more = [*more, "--workers", workers]
    status, _, stderr = run(*arguments(digits, out, *more), start_method=start_method)
    assert status == 0, stderr  # with a warning of PyTorch if there are fewer than three cores
    for part in "network", "optimizer":
        expected, result = (read_checkpoint(f / "last.ckpt")[part] for f in (whole, out))
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
    assert contents(out)["model.pt"] == contents(whole)["model.pt"]


@pytest.fixture(scope="module")
def alexnet(digits, tmp_path_factory):
    """The folder of a whole run of AlexNet with one worker."""
    out = tmp_path_factory.mktemp("alexnet")
    assert run(*arguments(digits, out, "--model", "alexnet", "--image-size", 64))[0] == 0
    return out


def test_later_epochs_start_no_workers_again(digits, tmp_path, monkeypatch):
    def note_start(index: int) -> None:
        (tmp_path / f"worker {os.getpid()}").touch()

    monkeypatch.setattr(loaders, "prepare_worker", note_start)
    more = "--workers", 2, "--epochs", 3, "--batch-size", 28
    result = call(main, *arguments(digits, tmp_path / "run", *more))
    assert result.status == 0, result
    # Two for reading each image once, two for training, two for validation.
    assert len(list(tmp_path.glob("worker *"))) == 6


def test_crops_differ_between_epochs_images_and_seeds_and_leave_the_generator_alone(digits):
    images = find_image_files(digits, "train", min_size=64)
    crops, other_seed = (RandomCrops(images, size=32, seed=seed) for seed in (0, 1))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, later = (crops[epoch, 7][0] for epoch in (1, 1, 2))
    assert torch.rand(1) == expected
    assert np.array_equal(first, again)
    assert not np.array_equal(first, later)
    assert not np.array_equal(first, other_seed[1, 7][0])


def test_processes_of_a_machine_share_the_cores_for_their_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)), raising=False)
    assert loaders.default_workers() == 16
    monkeypatch.setattr(loaders, "LOCAL_WORLD_SIZE", 2)
    assert loaders.default_workers() == 12
    monkeypatch.setattr(loaders, "LOCAL_WORLD_SIZE", 48)
    assert loaders.default_workers() == 1

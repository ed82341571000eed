"""What a GPU could break: the commands on CUDA give what they give on the CPU.

tests/gpu.sh runs these tests on a machine with a GPU.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import datasets

from examples import engines, evaluate, predict
from tests.examples.command import call
from tests.oracle import MODELS, deviation

ROOT = Path(__file__).parents[2]
EPOCHS = 6
TIMEOUT = 240  # seconds after which a process that does not end has failed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Handwritten digits of three classes: 84 to train on, 33 to validate on."""
    folder, data = tmp_path_factory.mktemp("digits"), datasets.load_digits()
    for digit in (0, 1, 3):
        for index, pixels in enumerate(data.images[data.target == digit][:39]):
            path = folder / ("train" if index < 28 else "val") / str(digit) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((64, 64)).save(path)
    return folder


def start(data: Path, out: Path, *more: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a small training run on the GPU in a process of its own."""
    small = f"--image-size 64 --batch-size 8 --epochs {EPOCHS} --device cuda".split()
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "examples.train", data, "--out", out, *small, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a test can kill the workers too
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for the end of the run, and return its output."""
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, stderr
    return stdout


@pytest.fixture(scope="module", params=["resnet18", "alexnet"])
def trained(request, digits, tmp_path_factory) -> Path:
    """The folder of a run on the GPU."""
    out = tmp_path_factory.mktemp("trained") / request.param
    stdout = finish(start(digits, out, "--model", request.param))
    assert "on cuda" in stdout.splitlines()[0]
    return out


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_on_a_gpu_continues_after_sigkill(precision, digits, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    finish(start(digits, whole, "--precision", precision))

    process = start(digits, out, "--precision", precision)
    while not process.stdout.readline().startswith("epoch 1/"):
        assert process.poll() is None, process.stderr.read()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    finish(start(digits, out, "--precision", precision, "--resume"))

    expected, resumed = (pd.read_csv(folder / "metrics.csv") for folder in (whole, out))
    assert list(resumed["epoch"]) == list(expected["epoch"]) == list(range(1, EPOCHS + 1))
    # A GPU adds in another order in each run, so the bits differ.
    for metric in "train_loss", "val_loss":
        assert list(resumed[metric]) == pytest.approx(list(expected[metric]), rel=0.2, abs=0.05)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_processes_train_on_two_gpus(digits, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    stdout = finish(start(digits, tmp_path / "run", launcher=torchrun))
    assert "2 processes" in stdout.splitlines()[0]
    losses = pd.read_csv(tmp_path / "run" / "metrics.csv")["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]


def test_the_accuracy_is_the_same_on_the_gpu_and_the_cpu(trained, digits):
    weights, printed = trained / "model.pt", {}
    for device in "cuda", "cpu":
        result = call(evaluate.main, digits, "--weights", weights, "--device", device)
        assert result.status == 0, result
        printed[device] = [float(number) for number in re.findall(r"\d+\.\d+", result.stdout)]
    top1, *_, loss = printed["cuda"]
    assert top1 == pytest.approx(printed["cpu"][0], abs=100 / 33)  # a tie may fall either way
    assert loss == pytest.approx(printed["cpu"][-1], abs=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_probabilities_are_the_same_on_the_gpu_and_the_cpu(precision, trained, digits):
    def probabilities(device: str, precision: str) -> torch.Tensor:
        options = "--weights", trained / "model.pt", "--top", 3, "--json"
        options += "--device", device, "--precision", precision
        result = call(predict.main, digits / "val", *options)
        assert result.status == 0, result
        rows = [json.loads(line)["predictions"] for line in result.stdout.splitlines()]
        assert len(rows) == 33
        return torch.tensor(
            [[p["probability"] for p in sorted(row, key=lambda p: p["index"])] for row in rows]
        )

    expected = probabilities("cpu", "float32")
    assert (probabilities("cuda", precision) - expected).abs().max() <= 0.05


def test_model_moves_to_cuda_and_back(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # it rounds: 5e-3 off
    images, moved = torch.randn(4, 3, 64, 64), copy.deepcopy(model).cuda()
    assert deviation(moved(images.cuda()).cpu(), model(images)) <= 1e-4
    torch.save(moved.state_dict(), tmp_path / "cuda.pth")
    weights = torch.load(tmp_path / "cuda.pth", map_location="cpu", weights_only=True)
    for other in (moved.cpu(), MODELS[name].from_state_dict(weights).eval()):
        assert torch.equal(other(images), model(images))


def test_a_compiled_network_keeps_its_earlier_logits_on_a_gpu(model):
    images = torch.randn(2, 4, 3, 64, 64, device="cuda")
    on_gpu = copy.deepcopy(model).cuda()
    with torch.no_grad():
        fast = engines.compiled(copy.deepcopy(on_gpu), autotune=True)
        first, second = [fast(batch) for batch in images]
        for logits, batch in (first, images[0]), (second, images[1]):
            assert deviation(logits, on_gpu(batch)) <= 0.02  # TF32


def test_the_benchmark_measures_every_row_on_a_gpu(name, tmp_path):
    sizes = ("--image-size", "64", "--batch-size", "1", "2")
    given = ("--model", name, *sizes, "--seconds", "0", "--device", "cuda", "--out", tmp_path)
    command = [sys.executable, "-m", "examples.benchmark", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stderr
    assert torch.cuda.get_device_name() in done.stdout.splitlines()[0]
    results = json.loads((tmp_path / "times.json").read_text())
    assert len({(row["row"], row["precision"]) for row in results}) == 6

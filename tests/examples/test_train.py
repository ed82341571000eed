"""What `python -m examples.train` promises, on real images: scikit-learn's handwritten digits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import BatchSampler

for package in ("click", "lightning_fabric", "pandas", "matplotlib", "tqdm"):
    pytest.importorskip(package)
datasets = pytest.importorskip("sklearn.datasets")
pexpect = pytest.importorskip("pexpect")
psutil = pytest.importorskip("psutil")

import pandas as pd  # noqa: E402
from click.testing import CliRunner  # noqa: E402

from examples.train import NORMALIZE, Shuffle, load_images, load_network, main  # noqa: E402
from examples.weights import load_file, read  # noqa: E402

ROOT = Path(__file__).parents[2]
TRAIN, VAL = 24, 11  # images of a class; two processes cannot halve what `val/` has
MINUTES = 240  # seconds after which a process that does not end has failed


def write_digits(folder: Path, digits: str) -> Path:
    data = datasets.load_digits()
    for digit in digits:
        images = data.images[data.target == int(digit)][: TRAIN + VAL]
        for index, pixels in enumerate(images):
            path = folder / ("train" if index < TRAIN else "val") / digit / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), "013")


def options(data: Path, out: Path, *more: object) -> list[str]:
    """Return the arguments of a small run, of 20 steps: OneCycleLR's own schedule fails there."""
    small = "--image-size 32 --batch-size 16 --epochs 5".split()  # noqa: SIM905
    return [str(data), "--out", str(out), *small, *map(str, more)]


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start the command in a process of its own."""
    command = [sys.executable, *launcher, "-m", "examples.train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def run(*arguments: str, launcher: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Run the command to its end; return its status, what it printed and its errors."""
    process = start(*arguments, launcher=launcher)
    stdout, stderr = process.communicate(timeout=MINUTES)
    return process.returncode, stdout, stderr


def call(*arguments: str) -> tuple[int, str, str]:
    """Do the same in this process."""
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refusal(*arguments: str) -> str:
    """Return the one line with which the command refuses the arguments."""
    status, stdout, stderr = call(*arguments)
    assert (status, stdout, stderr.count("\n")) == (1, "", 1), stderr
    return stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory):
    """The folder that a whole run has left."""
    out = tmp_path_factory.mktemp("finished") / "run"
    status, stdout, stderr = run(*options(digits, out))
    assert (status, stderr) == (0, "")
    assert [line.split(":")[0] for line in stdout.splitlines()] == (
        [f"epoch {epoch}/5" for epoch in (1, 2, 3, 4, 5)]
    )
    return out


def test_it_leaves_metrics_a_picture_a_checkpoint_and_the_best_weights(finished, digits):
    files = {"metrics.csv", "curves.png", "last.ckpt", "model.pt"}
    assert {path.name for path in finished.iterdir()} == files
    rows = pd.read_csv(finished / "metrics.csv")
    assert list(rows["epoch"]) == [1, 2, 3, 4, 5]
    with Image.open(finished / "curves.png") as curves:
        assert min(curves.size) >= 300
    classifier = load_file(finished / "model.pt")
    assert (classifier.classes, classifier.image_size) == (["0", "1", "3"], 32)
    given = options(digits, finished, "--evaluate", "--weights", str(finished / "model.pt"))
    top1 = rows["val_top1"].max()
    assert call(*given)[:2] == (0, f"top-1 {top1:.3f} %, top-5 100.000 % of 33 images\n")


def equal(one: object, two: object) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize(
    "model, devices, epochs",  # finished when it is killed
    [
        ("resnet18", 1, 0),
        ("resnet18", 1, 1),
        pytest.param("alexnet", 1, 1, marks=pytest.mark.slow),
        pytest.param("resnet18", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_bit_identical(model, devices, epochs, finished, digits, tmp_path):
    out, whole, given = tmp_path / "run", finished, ["--model", model, "--devices", str(devices)]
    if model == "alexnet" or devices > 1:  # dropout is AlexNet's, batch norm ResNet-18's
        whole, given = tmp_path / "whole", [*given, "--image-size", "64"]
        assert run(*options(digits, whole, *given))[0] == 0
    process = start(*options(digits, out, *given))
    while process.poll() is None and not (out / "last.ckpt" if epochs else out).exists():
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=MINUTES)
    assert (out / "last.ckpt").exists() == bool(epochs)

    resumed = options(digits, out, *given, "--resume", "--workers", "0")
    assert run(*resumed)[0] == 0
    one, two = read(whole / "last.ckpt"), read(out / "last.ckpt")
    assert equal(one["network"], two["network"])
    assert equal(one["optimizer"]["state"], two["optimizer"]["state"])
    assert equal(*(read(folder / "model.pt")["state_dict"] for folder in (whole, out)))
    losses = [pd.read_csv(folder / "metrics.csv")["val_loss"] for folder in (whole, out)]
    assert list(losses[0]) == list(losses[1])


def test_two_processes_train_and_count_each_image_once(finished, digits, tmp_path):
    out = tmp_path / "run"
    status, stdout, stderr = run(*options(digits, out, "--devices", "2"))
    assert (status, len(stdout.splitlines()), stderr) == (0, 5, "")
    one, two = (read(folder / "last.ckpt")["schedule"] for folder in (finished, out))
    assert one == two

    evaluate = options(digits, out, "--evaluate", "--weights", str(out / "model.pt"))
    torchrun = "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"
    status, shared, _ = run(*evaluate, launcher=torchrun)
    assert (status, shared) == call(*evaluate)[:2]
    assert "of 33 images" in shared


@pytest.mark.parametrize("epoch", [0, 1])
def test_processes_share_each_batch_of_one(epoch):
    def batches(rank: int, processes: int) -> list[list[tuple[int, int]]]:
        shuffle = Shuffle(range(50), processes, rank, drop_last=True)
        shuffle.set_epoch(epoch)
        assert len(list(shuffle)) == len(shuffle)
        return list(BatchSampler(shuffle, 8 // processes, drop_last=True))

    alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert len(alone) == len(first) == len(second) == 6
    for whole, *halves in zip(alone, first, second):
        assert sorted(whole) == sorted(halves[0] + halves[1])
    assert len({index for batch in alone for index, _ in batch}) == 48


def test_an_augmentation_is_its_own_in_each_epoch_and_leaves_dropout_alone(digits):
    train, _ = load_images(digits, 32)
    before = torch.get_rng_state()

    def first_image(epoch: int) -> torch.Tensor:
        shuffle = Shuffle(train, 1, 0)
        shuffle.set_epoch(epoch)
        return train[0, dict(shuffle)[0]][0]

    assert torch.equal(first_image(0), first_image(0))
    assert not torch.equal(first_image(0), first_image(1))
    assert torch.equal(before, torch.get_rng_state())


def test_fine_tuning_starts_from_the_weights_with_a_new_head(finished, tmp_path):
    data, file = write_digits(tmp_path / "data", "25"), finished / "model.pt"
    start = {"model": None, "weights": file, "pretrained": False}
    ours, theirs = load_network(start, ["2", "5"], True).state_dict(), read(file)["state_dict"]
    assert ours.pop("fc.weight").shape == (2, 512)
    assert ours.pop("fc.bias").shape == (2,)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert call(*options(data, tmp_path / "run", "--weights", file))[0] == 0
    assert load_file(tmp_path / "run" / "model.pt").classes == ["2", "5"]


def test_official_weights_keep_their_head_only_for_as_many_classes(digits, tmp_path, monkeypatch):
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    start = {"model": "resnet18", "weights": None, "pretrained": True}
    tuned = load_network(start, ["0", "1", "3"], new_head=True).state_dict()
    assert tuned["fc.weight"].shape == (3, 512)
    assert torch.equal(tuned["conv1.weight"], weights["conv1.weight"])
    whole = load_network(start, [f"n{index:08}" for index in range(1000)], new_head=False)
    assert torch.equal(whole.fc.weight, weights["fc.weight"])
    assert "1000: tench" in refusal(*options(digits, tmp_path, "--pretrained", "--evaluate"))


def test_evaluation_sees_what_the_official_transforms_make(tmp_path):
    for split in "train", "val":
        (tmp_path / split / "flower").mkdir(parents=True)
        picture = Image.fromarray(datasets.load_sample_image("flower.jpg"))
        picture.save(tmp_path / split / "flower" / "0.png")
    _, val = load_images(tmp_path, 224)
    official = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()(picture)
    torch.testing.assert_close(NORMALIZE(val[0, 0][0].float()), official, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    finished, digits, tmp_path
):
    checkpoint = read(finished / "last.ckpt")
    checkpoint["rows"].pop()  # so that an epoch is left
    checkpoint["network"]["fc.bias"][0] = float("nan")
    checkpoint["schedule"]["last_epoch"] = 16
    torch.save(checkpoint, tmp_path / "last.ckpt")
    before = contents(tmp_path)
    line = refusal(*options(digits, tmp_path, "--resume"))
    assert "the loss became nan at step 17" in line
    assert before == contents(tmp_path)


@pytest.mark.parametrize("given", ["--workers 0", "--workers 1", "--devices 2"])
def test_an_image_that_cannot_be_decoded_stops_the_run_naming_it(given, digits, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    broken = data / "train" / "1" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    more = [*given.split(), "--batch-size", "72"]
    status, _, stderr = run(*options(data, tmp_path / "run", *more))
    assert status != 0
    assert stderr.startswith(f"Error: {broken}: ")
    assert stderr.count("\n") == 1, stderr


def test_a_terminal_gets_a_progress_bar_and_ctrl_c_leaves_a_checkpoint(digits, tmp_path):
    command = ["-m", "examples.train", *options(digits, tmp_path / "run", "--epochs", 500)]
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a background job does not
    terminal = pexpect.spawn(sys.executable, command, cwd=ROOT, timeout=MINUTES, preexec_fn=heed)
    terminal.expect("images/s.*epoch 2/500: ")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 1
    assert terminal.before.rstrip().endswith(b"Aborted!")
    assert b"Traceback" not in terminal.before
    assert len(read(tmp_path / "run" / "last.ckpt")["rows"]) >= 1


@pytest.mark.parametrize(
    "given, name, words",
    [
        (
            "--workers 1",
            "pt_data_worker",
            "a process that reads images was killed, by hand or for lack of (shared) memory",
        ),
        pytest.param(
            *("--workers 0 --devices 2", "", "another process of this run was killed"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_killed_process_ends_the_run_with_one_line(given, name, words, digits, tmp_path):
    endless = ["--epochs", 500, *given.split()]
    process = start(*options(digits, tmp_path / "run", *endless))
    assert process.stdout.readline().startswith("epoch 1/500")
    children = psutil.Process(process.pid).children()
    next(child for child in children if name in child.name()).kill()
    _, stderr = process.communicate(timeout=MINUTES)
    assert process.returncode == 1
    assert stderr.startswith(f"Error: {words}")
    assert stderr.count("\n") == 1, stderr


@pytest.mark.slow
def test_a_compiled_run_ends_as_any_other(digits, tmp_path):
    out = tmp_path / "run"
    assert run(*options(digits, out, "--compile", "--epochs", "1"))[0] == 0
    assert load_file(out / "model.pt").classes == ["0", "1", "3"]


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    "change, where, words",
    [
        (shutil.rmtree, ".", "No such file or directory"),
        (shutil.rmtree, "val", "No such file or directory"),
        (empty, "train/1", "no valid file for the classes 1"),
        (shutil.rmtree, "val/3", "only one has the class 3"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(change, where, words, digits, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    change(data / where)
    assert words in refusal(*options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given, words",
    [
        ("--epochs 0", "'--epochs': 0 is not in the range"),
        ("--batch-size 15 --devices 2", "15 is no multiple of 2"),
        ("--batch-size 100", "or more than 72 images"),
        ("--batch-size 1", "more than 1 value per channel"),
        ("--lr nan", "are finite numbers"),
        ("--lr inf", "are finite numbers"),
        ("--label-smoothing nan", "are finite numbers"),
        ("--lr 0", "0.0 is not in the range"),
        ("--label-smoothing 1", "1.0 is not in the range"),
        ("--model alexnet", "--image-size 32 is too small"),
        ("--model vgg", "'vgg' is not one of"),
        ("--precision 8", "'8' is not one of"),
        ("--pretrained --weights file", "give --pretrained or --weights"),
        ("--evaluate", "--evaluate needs one of them"),
        ("--weights nowhere.pt", "cannot read nowhere.pt"),
        ("--out pyproject.toml", "File exists"),
    ],
)
def test_values_that_make_no_sense_are_refused(given, words, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words in refusal(*options(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "classes, given, words",
    [
        ("013", "", "holds a run: add --resume"),
        ("013", "--resume --model alexnet --image-size 64", "holds a run with image_size 32"),
        ("013", "--resume --epochs 6", "epochs 5, not 6"),
        ("013", "--resume --lr 0.2", "lr 0.1, not 0.2"),
        ("013", "--resume --precision bf16-mixed", "precision 32, not bf16-mixed"),
        ("013", "--resume --devices 2", "devices 1, not 2"),
        ("013", "--resume --compile", "compile False, not True"),
        ("015", "--resume", "data 72 + 33 images"),
    ],
)
def test_a_run_goes_on_only_as_what_it_was(classes, given, words, finished, tmp_path):
    data = write_digits(tmp_path, classes)
    before = contents(finished)
    assert words in refusal(*options(data, finished, *given.split()))
    assert before == contents(finished)


def test_a_damaged_checkpoint_is_refused(finished, digits, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes()[:-1000])
    assert "is damaged" in refusal(*options(digits, tmp_path, "--resume"))

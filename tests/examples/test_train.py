"""What `python -m examples.train` promises, on real images: scikit-learn's handwritten digits."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

for package in ("click", "lightning_fabric", "pandas", "matplotlib", "tqdm"):
    pytest.importorskip(package)
datasets = pytest.importorskip("sklearn.datasets")
pexpect = pytest.importorskip("pexpect")
psutil = pytest.importorskip("psutil")

import pandas as pd  # noqa: E402

from examples import train  # noqa: E402
from examples.images import open_image  # noqa: E402
from examples.train import NORMALIZE, load_images, load_network, main  # noqa: E402
from examples.weights import load_file, read  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402

ROOT = Path(__file__).parents[2]
TRAIN, VAL = 28, 11  # images of a class; two processes cannot halve what `val/` has
MINUTES = 240  # seconds after which a process that does not end has failed


def write_digits(folder: Path, digits: str) -> Path:
    data = datasets.load_digits()
    for digit in digits:
        for index, pixels in enumerate(data.images[data.target == int(digit)][: TRAIN + VAL]):
            path = folder / ("train" if index < TRAIN else "val") / digit / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits"), "013")


def options(data: Path, out: Path, *more: object) -> list[str]:
    """Return the arguments of a small run, of 20 steps: OneCycleLR's own schedule fails there."""
    small = "--image-size 32 --batch-size 8 --epochs 2".split()  # noqa: SIM905
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


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory):
    """The folder that a whole run has left."""
    out = tmp_path_factory.mktemp("finished") / "run"
    status, stdout, stderr = run(*options(digits, out))
    assert (status, stderr) == (0, "")
    titles = [line.split(":")[0] for line in stdout.splitlines()]
    assert titles == ["epoch 1/2", "epoch 2/2"]
    return out


def test_it_leaves_metrics_a_picture_a_checkpoint_and_the_best_weights(finished, digits):
    assert contents(finished).keys() == {"metrics.csv", "curves.png", "last.ckpt", "model.pt"}
    rows = pd.read_csv(finished / "metrics.csv")
    assert list(rows["epoch"]) == [1, 2]
    assert min(Image.open(finished / "curves.png").size) >= 300
    classifier = load_file(finished / "model.pt")
    assert (classifier.classes, classifier.image_size) == (["0", "1", "3"], 32)
    given = options(digits, finished, "--evaluate", "--weights", str(finished / "model.pt"))
    best = rows.loc[rows["val_top1"].idxmax()]
    line = f"top-1 {best.val_top1:.3f} %, top-5 100.000 %, loss {best.val_loss:.3f}: 33 images\n"
    assert call(main, *given)[:2] == (0, line)
    recipe = read(finished / "last.ckpt")["optimizer"]["param_groups"][0]
    assert (recipe["max_lr"], recipe["momentum"], recipe["weight_decay"]) == (0.1 / 32, 0.9, 1e-4)


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

    assert run(*options(digits, out, *given, "--resume"))[0] == 0
    for part in "network", "optimizer":
        one, two = (read(folder / "last.ckpt")[part] for folder in (whole, out))
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert contents(whole)["model.pt"] == contents(out)["model.pt"]
    assert list(pd.read_csv(out / "metrics.csv")["epoch"]) == [1, 2]


def test_two_processes_train_and_count_each_image_once(finished, digits, tmp_path):
    out = tmp_path / "run"
    status, stdout, stderr = run(*options(digits, out, "--devices", "2"))
    assert (status, len(stdout.splitlines()), stderr) == (0, 2, "")
    assert read(finished / "last.ckpt")["schedule"] == read(out / "last.ckpt")["schedule"]
    evaluate = options(digits, out, "--evaluate", "--weights", str(out / "model.pt"))
    torchrun = "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"
    status, shared, _ = run(*evaluate, launcher=torchrun)
    assert (status, shared) == call(main, *evaluate)[:2]
    rows = pd.read_csv(out / "metrics.csv")
    loss = rows["val_loss"][rows["val_top1"].idxmax()]
    assert f"loss {loss:.3f}: 33 images" in shared


def test_each_epoch_has_every_image_once_in_an_order_of_its_own(digits, tmp_path, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(train, "open_image", lambda path: opened.append(path) or open_image(path))
    given = options(digits, tmp_path / "run", "--workers", 0, "--batch-size", 28)
    assert call(main, *given)[0] == 0
    seen = [path for path in opened if "train" in Path(path).parts]
    assert len(set(seen[:84])) == len(set(seen[84:])) == 84
    assert seen[:84] != seen[84:]


def test_of_two_processes_one_says_why_the_run_stops(digits, tmp_path):
    status, _, stderr = run(*options(digits, tmp_path / "run", "--devices", 2, "--lr", 1e30))
    assert (status != 0, stderr.count("\n")) == (True, 1), stderr
    assert "the loss became" in stderr


def test_fine_tuning_starts_from_the_weights_with_a_new_head(finished, tmp_path):
    data, file = write_digits(tmp_path / "data", "25"), finished / "model.pt"
    start = {"model": None, "weights": file, "pretrained": False}
    ours, theirs = load_network(start, ["2", "5"], True).state_dict(), read(file)["state_dict"]
    assert (ours.pop("fc.weight").shape, ours.pop("fc.bias").shape) == ((2, 512), (2,))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert call(main, *options(data, tmp_path / "run", "--weights", file))[0] == 0
    assert load_file(tmp_path / "run" / "model.pt").classes == ["2", "5"]


def test_official_weights_keep_their_head_only_for_as_many_classes(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    start = {"model": "resnet18", "weights": None, "pretrained": True}
    tuned = load_network(start, ["0", "1", "3"], new_head=True)
    whole = load_network(start, [f"n{index:08}" for index in range(1000)], new_head=False)
    assert (tuned.fc.out_features, whole.fc.out_features) == (3, 1000)
    assert torch.equal(tuned.conv1.weight, whole.conv1.weight)
    assert torch.equal(whole.fc.weight, read(file)["fc.weight"])
    assert "1000: tench" in refusal(main, *options(digits, tmp_path, "--pretrained", "--evaluate"))


def test_training_crops_and_evaluation_sees_what_the_official_transforms_make(tmp_path):
    picture = Image.fromarray(datasets.load_sample_image("flower.jpg"))
    for split in "train", "val":
        (tmp_path / split / "flower").mkdir(parents=True)
        picture.save(tmp_path / split / "flower" / "0.png")
    train, val = load_images(tmp_path, 224)
    assert len({train[0][0].numpy().tobytes() for _ in range(9)}) > 2  # not only flipped
    official = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()(picture)
    torch.testing.assert_close(NORMALIZE(val[0][0].float()), official, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_changes_nothing(finished, digits, tmp_path):
    checkpoint = read(finished / "last.ckpt")
    checkpoint["rows"].pop()  # so that an epoch is left
    checkpoint["network"]["fc.bias"][0] = float("nan")
    checkpoint["schedule"]["last_epoch"] = 7
    torch.save(checkpoint, tmp_path / "last.ckpt")
    before = contents(tmp_path)
    assert "nan at step 8" in refusal(main, *options(digits, tmp_path, "--resume"))
    assert before == contents(tmp_path)


@pytest.fixture
def data(digits, tmp_path) -> Path:
    """A copy of the images, to be broken."""
    return shutil.copytree(digits, tmp_path / "data")


@pytest.mark.parametrize("given", ["--workers 0", "--workers 1", "--devices 2"])
def test_an_image_that_cannot_be_decoded_stops_the_run_naming_it(given, data, tmp_path):
    broken = data / "train" / "1" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    more = [*given.split(), "--batch-size", "84"]
    status, _, stderr = run(*options(data, tmp_path / "run", *more))
    assert (status != 0, stderr.count("\n")) == (True, 1), stderr
    assert stderr.startswith(f"Error: {broken}: ")


def test_a_terminal_gets_a_progress_bar_and_ctrl_c_leaves_a_checkpoint(digits, tmp_path):
    endless = options(digits, tmp_path / "run", "--epochs", 500, "--workers", 0)
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a background job does not
    command = ["-m", "examples.train", *endless]
    terminal = pexpect.spawn(sys.executable, command, cwd=ROOT, timeout=MINUTES, preexec_fn=heed)
    terminal.expect("images/s.*epoch 2/500: +[1-9]")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert (terminal.exitstatus, b"Traceback" in terminal.before) == (1, False)
    assert terminal.before.rstrip().endswith(b"Aborted!")
    assert len(read(tmp_path / "run" / "last.ckpt")["rows"]) >= 1


@pytest.mark.parametrize(
    "given, words",
    [
        ("--workers 1", "DataLoader worker (pid"),
        pytest.param("--workers 0 --devices 2", "another process of", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_run_with_one_line(given, words, digits, tmp_path):
    process = start(*options(digits, tmp_path / "run", "--epochs", 500, *given.split()))
    assert process.stdout.readline().startswith("epoch 1/500")
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children():
                child.kill()
    stderr = process.stderr.read()
    assert (process.returncode, stderr.count("\n")) == (1, 1), stderr
    assert stderr.startswith(f"Error: {words}")


@pytest.mark.slow
def test_a_compiled_run_ends_as_any_other(digits, tmp_path):
    assert run(*options(digits, tmp_path / "run", "--compile", "--epochs", "1"))[0] == 0
    assert load_file(tmp_path / "run" / "model.pt").classes == ["0", "1", "3"]


@pytest.mark.parametrize(
    "change, where, words",
    [
        (shutil.rmtree, "val", "No such file or directory"),
        (lambda path: shutil.rmtree(path) or path.mkdir(), "val/1", "for the classes 1"),
        (shutil.rmtree, "val/3", "only one has the class 3"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(change, where, words, data, tmp_path):
    change(data / where)
    assert words in refusal(main, *options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given, words",
    [
        ("--epochs 0", "'--epochs': 0 is not in the range"),
        ("--batch-size 15 --devices 2", "15 is no multiple of 2"),
        ("--batch-size 100", "or more than 84 images"),
        ("--batch-size 1", "more than 1 value per channel"),
        ("--lr inf", "are finite numbers"),
        ("--weight-decay nan", "are finite numbers"),
        ("--label-smoothing nan", "are finite numbers"),
        ("--lr 0", "0.0 is not in the range"),
        ("--label-smoothing 1", "1.0 is not in the range"),
        ("--model alexnet", "--image-size 32 is too small"),
        ("--pretrained --weights file", "give --pretrained or --weights"),
        ("--evaluate", "--evaluate needs one of them"),
        ("--weights nowhere.pt", "cannot read nowhere.pt"),
        ("--out pyproject.toml", "File exists"),
    ],
)
def test_values_that_make_no_sense_are_refused(given, words, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words in refusal(main, *options(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given, words",
    [
        ("", "holds a run: add --resume"),
        ("--resume --model alexnet --image-size 64", "holds a run with image_size 32"),
        ("--resume --epochs 3", "epochs 2, not 3"),
        ("--resume --weight-decay 0", "weight_decay 0.0001, not 0.0"),
        ("--resume --precision bf16-mixed", "precision 32, not bf16-mixed"),
        ("--resume --devices 2", "devices 1, not 2"),
        ("--resume --compile", "compile False, not True"),
    ],
)
def test_a_run_goes_on_only_as_what_it_was(given, words, finished, digits):
    before = contents(finished)
    assert words in refusal(main, *options(digits, finished, *given.split()))
    assert before == contents(finished)


def test_other_images_and_damaged_checkpoints_are_refused(finished, data, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes()[:-1000])
    assert "is damaged" in refusal(main, *options(data, tmp_path, "--resume"))
    (data / "train" / "3" / "0.png").rename(data / "train" / "3" / "other.png")
    assert "data 84 + 33 images" in refusal(main, *options(data, finished, "--resume"))

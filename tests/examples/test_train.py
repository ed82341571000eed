"""What `python -m examples.train` promises, on real images: scikit-learn's handwritten digits."""

import hashlib
import os
import pickle
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
from torchvision.datasets import CIFAR10

for package in ("tyro", "pandas", "matplotlib", "tqdm"):
    pytest.importorskip(package)
datasets = pytest.importorskip("sklearn.datasets")

import pandas as pd  # noqa: E402

from examples import images  # noqa: E402
from examples.train import learning_rate, main  # noqa: E402
from examples.weights import load_file, read_checkpoint  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402

ROOT = Path(__file__).parents[2]
TRAIN, VAL = 28, 11  # images of a class; two processes cannot halve the validation images
TIMEOUT = 240  # seconds after which a process that does not end has failed
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def write_digits(folder: Path, digits: str) -> Path:
    data = datasets.load_digits()
    for digit in digits:
        for index, pixels in enumerate(data.images[data.target == int(digit)][: TRAIN + VAL]):
            path = folder / ("train" if index < TRAIN else "val") / digit / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Images of three classes: 84 to train on, 33 to validate on."""
    return write_digits(tmp_path_factory.mktemp("digits"), "013")


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> None:
    """CIFAR-10 as torchvision leaves it in data/, cut to 40 training and 20 validation images."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def store(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(count: int) -> dict:
        pixels = torch.randint(256, (count, 3 * 32 * 32), dtype=torch.uint8)
        return {"data": pixels.numpy(), "labels": [index % 10 for index in range(count)]}

    names = "airplane automobile bird cat deer dog frog horse ship truck".split()  # noqa: SIM905
    _, checksum = store("batches.meta", {"label_names": names})
    meta = {"filename": "batches.meta", "key": "label_names", "md5": checksum}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "train_list", [store("data_batch_1", batch(40))])
    monkeypatch.setattr(CIFAR10, "test_list", [store("test_batch", batch(20))])


@pytest.fixture
def data(digits, tmp_path) -> Path:
    """A copy of the images, to be changed."""
    return shutil.copytree(digits, tmp_path / "data")


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    """Return the arguments of a small run: two epochs of ten steps."""
    small = "--image-size 32 --batch-size 8 --epochs 2 --workers 1".split()  # noqa: SIM905
    return [str(data), "--out", str(out), *small, *map(str, more)]


def start(*arguments: str, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen:
    """Start the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "examples.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a test can kill the workers too
    )


def run(
    *arguments: str, launcher: tuple[str, ...] = (), **environment: str
) -> tuple[int, str, str]:
    """Run the command to its end; return its status, its output and its errors."""
    process = start(*arguments, launcher=launcher, **environment)
    stdout, stderr = process.communicate(timeout=TIMEOUT)
    return process.returncode, stdout, stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def finished(digits, tmp_path_factory) -> Path:
    """The folder that a whole run has left."""
    out = tmp_path_factory.mktemp("finished") / "run"
    status, stdout, stderr = run(*arguments(digits, out))
    assert (status, stderr) == (0, "")
    (out / "stdout").write_text(stdout)
    return out


def test_first_line_says_what_is_trained_on_what(finished):
    first, *epochs = (finished / "stdout").read_text().splitlines()
    for words in "resnet18", "11,178,051 parameters", "84 training", "33 validation", "3 classes":
        assert words in first
    assert "on cpu" in first or "on cuda" in first
    assert "10 steps per epoch" in first
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]


def test_files_that_are_not_images_are_counted_in_the_first_line(data, tmp_path):
    (data / "train" / "1" / "._0.png").write_bytes(b"\x00\x05\x16\x07")  # macOS leaves these
    (data / "val" / "3" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    result = call(main, *arguments(data, tmp_path / "run", "--epochs", 1))
    assert result.status == 0, result
    assert "2 other files ignored" in result.stdout.splitlines()[0]


def test_run_writes_metrics_curves_checkpoint_and_weights(finished):
    names = {"metrics.csv", "curves.png", "last.ckpt", "model.pt"}
    assert contents(finished).keys() - {"stdout"} == names
    rows = pd.read_csv(finished / "metrics.csv")
    assert list(rows["epoch"]) == [1, 2]
    assert {"lr", "train_loss", "val_top1", "val_top5", "images/s", "seconds"} <= set(rows)
    width, height = Image.open(finished / "curves.png").size
    assert width > height > 500


def test_model_file_has_class_names_and_image_size(finished):
    classifier = load_file(finished / "model.pt")
    assert classifier.classes == ["0", "1", "3"]
    assert classifier.image_size == 32


def test_default_recipe_is_sgd_with_momentum_and_the_papers_weight_decay(finished):
    group = read_checkpoint(finished / "last.ckpt")["optimizer"]["param_groups"][0]
    assert group["momentum"] == 0.9
    assert group["weight_decay"] == 1e-4


def test_evaluate_prints_the_accuracy_of_the_best_epoch_at_the_stored_image_size(finished, digits):
    result = call(main, digits, "--weights", finished / "model.pt", "--evaluate")
    rows = pd.read_csv(finished / "metrics.csv")
    best = rows.loc[rows["val_top1"].idxmax()]
    accuracy = f"top-1 {best.val_top1:.3f}%, top-5 100.000%"
    assert result.stdout == f"{accuracy}, loss {best.val_loss:.3f}: 33 images\n"
    assert result.status == 0


def test_evaluate_reads_nothing_but_val(finished, data, tmp_path):
    shutil.rmtree(data / "train")
    result = call(main, data, "--weights", finished / "last.ckpt", "--evaluate")
    assert result.status == 0, result
    assert "33 images" in result.stdout


def test_cifar10_is_trained_on_and_evaluated(cifar10):
    small = ("--image-size", 32, "--batch-size", 8, "--epochs", 1)
    trained = call(main, "cifar10", *small)
    assert "40 training and 20 validation images of 10 classes" in trained.stdout, trained
    assert load_file("run/model.pt").classes[:2] == ["airplane", "automobile"]

    evaluated = call(main, "cifar10", "--weights", "run/model.pt", "--evaluate")
    assert evaluated.stdout.endswith("20 images\n"), evaluated


def test_cifar10_that_cannot_be_downloaded_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # where nothing answers
    assert "cannot download CIFAR-10" in refusal(main, "cifar10")


def test_learning_rate_rises_falls_and_ends_near_zero_for_any_number_of_steps():
    for steps in (1, 2, 5, 20, 21, 1000):
        rates = [learning_rate((step + 0.5) / steps, peak=0.1) for step in range(steps)]
        top = rates.index(max(rates))
        assert min(rates) > 0
        assert max(rates) <= 0.1
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert steps < 20 or rates[-1] < 0.001
    assert rates[0] < 0.002
    assert rates[50] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(
    "model, launcher, finished_epochs",
    [
        ("resnet18", (), 0),
        ("resnet18", (), 1),
        pytest.param("alexnet", (), 1, marks=pytest.mark.slow),
        pytest.param("resnet18", TORCHRUN, 1, marks=pytest.mark.slow),
    ],
    ids=["resnet18 in its first epoch", "resnet18", "alexnet", "two_processes"],
)
def test_resume_after_sigkill_is_bit_identical(
    model, launcher, finished_epochs, finished, digits, tmp_path
):
    whole, out, more = finished, tmp_path / "run", []
    if model == "alexnet" or launcher:  # dropout is AlexNet's, batch norm is ResNet-18's
        whole, more = tmp_path / "whole", ["--model", model, "--image-size", "64"]
        assert run(*arguments(digits, whole, *more), launcher=launcher)[0] == 0

    process = start(*arguments(digits, out, *more), launcher=launcher)
    awaited = out / "last.ckpt" if finished_epochs else out
    while process.poll() is None and not awaited.exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT)
    assert (out / "last.ckpt").exists() == bool(finished_epochs)

    assert run(*arguments(digits, out, *more, "--resume"), launcher=launcher)[0] == 0
    for part in "network", "optimizer":
        expected, resumed = (read_checkpoint(f / "last.ckpt")[part] for f in (whole, out))
        torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
    assert contents(out)["model.pt"] == contents(whole)["model.pt"]
    assert list(pd.read_csv(out / "metrics.csv")["epoch"]) == [1, 2]


def test_two_processes_take_the_same_steps_and_validate_each_image_once(digits, finished, tmp_path):
    out = tmp_path / "run"
    status, stdout, stderr = run(*arguments(digits, out), launcher=TORCHRUN)
    assert status == 0, stderr
    assert "Warning" not in stderr, stderr
    assert len(stdout.splitlines()) == 3
    rows, single = pd.read_csv(out / "metrics.csv"), pd.read_csv(finished / "metrics.csv")
    assert list(rows["lr"]) == list(single["lr"])

    best = rows.loc[rows["val_top1"].idxmax()]
    result = call(main, digits, "--weights", out / "model.pt", "--evaluate")
    assert result.stdout.startswith(f"top-1 {best.val_top1:.3f}%")
    assert f"loss {best.val_loss:.3f}: 33 images" in result.stdout


def test_each_epoch_sees_every_image_once_in_a_new_order(digits, tmp_path, monkeypatch):
    opened: list[Path] = []

    def open_image(path, **options):
        opened.append(path)
        return original(path, **options)

    original = images.open_image
    monkeypatch.setattr(images, "open_image", open_image)
    more = "--workers", 0, "--batch-size", 28
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    seen = [path for path in opened if "train" in path.parts]
    first, second = seen[:84], seen[84:]
    assert len(set(first)) == len(set(second)) == 84
    assert first != second


def test_fine_tuning_keeps_the_weights_and_replaces_the_head(finished, tmp_path):
    data, file = write_digits(tmp_path / "data", "25"), finished / "model.pt"
    more = "--weights", file, "--lr", 1e-9, "--epochs", 1  # the weights hardly move
    result = call(main, *arguments(data, tmp_path / "run", *more))
    assert result.status == 0, result
    tuned = load_file(tmp_path / "run" / "model.pt")
    assert tuned.classes == ["2", "5"]
    start = read_checkpoint(file)["state_dict"]
    torch.testing.assert_close(tuned.network.layer4[1].conv2.weight, start["layer4.1.conv2.weight"])
    assert tuned.network.fc.out_features == 2


def test_fine_tuning_on_the_same_classes_keeps_the_head(finished, digits, tmp_path):
    more = "--weights", finished / "model.pt", "--lr", 1e-9, "--epochs", 1
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    tuned = load_file(tmp_path / "run" / "model.pt")
    start = read_checkpoint(finished / "model.pt")["state_dict"]
    torch.testing.assert_close(tuned.network.fc.weight, start["fc.weight"])


@pytest.fixture
def official_weights(tmp_path, monkeypatch) -> Path:
    """Random weights where PyTorch keeps the official ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    return file


def test_weights_for_other_classes_are_not_evaluated(finished, tmp_path):
    data = write_digits(tmp_path / "data", "25")
    line = refusal(main, data, "--weights", finished / "model.pt", "--evaluate")
    assert "3 other classes: 0, 1, 3" in line


def test_resume_does_not_need_the_weights_that_the_run_started_from(finished, digits, tmp_path):
    weights = shutil.copy(finished / "model.pt", tmp_path / "start.pt")
    given = arguments(digits, tmp_path / "run", "--weights", weights)
    assert call(main, *given).status == 0
    checkpoint = read_checkpoint(tmp_path / "run" / "last.ckpt")
    checkpoint["rows"].pop()  # so that an epoch is left
    torch.save(checkpoint, tmp_path / "run" / "last.ckpt")
    Path(weights).unlink()
    assert call(main, *given, "--resume").status == 0
    assert list(pd.read_csv(tmp_path / "run" / "metrics.csv")["epoch"]) == [1, 2]


@pytest.mark.parametrize("spoil", ["a weight that is not a number", "a learning rate of 1e30"])
def test_loss_that_is_not_finite_stops_before_anything_is_overwritten(
    spoil, finished, digits, tmp_path
):
    checkpoint = read_checkpoint(finished / "last.ckpt")
    checkpoint["rows"].pop()  # so that an epoch is left
    if spoil == "a learning rate of 1e30":
        checkpoint["config"]["lr"] = 1e30
    else:
        checkpoint["network"]["fc.bias"][0] = float("nan")
    torch.save(checkpoint, tmp_path / "last.ckpt")
    before = contents(tmp_path)
    line = refusal(main, *arguments(digits, tmp_path, "--resume"))
    assert "the training loss is not finite" in line
    assert "epoch 2" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_image_stops_the_run_with_its_name(split, workers, data, tmp_path):
    damaged = data / split / "1" / "0.png" if split == "train" else data / split / "1" / "30.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    more = "--workers", workers, "--batch-size", "84"
    result = call(main, *arguments(data, tmp_path / "run", *more))
    assert result.status == 1
    assert result.stderr.startswith(f"error: {damaged}: ")
    assert result.stderr.count("\n") == 1
    assert list((tmp_path / "run").iterdir()) == []


def test_terminal_shows_loss_rate_and_speed_and_ctrl_c_leaves_a_checkpoint(digits, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    endless = arguments(digits, tmp_path / "run", "--epochs", 500, "--workers", 0)
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "examples.train", *endless],
        cwd=ROOT,
        timeout=TIMEOUT,
        dimensions=(24, 120),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    terminal.expect("images/s, loss=.*lr=")
    terminal.expect("epoch 2/500: +[1-9]")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 1
    assert b"Traceback" not in terminal.before
    assert b"interrupted: --resume continues" in terminal.before
    assert len(read_checkpoint(tmp_path / "run" / "last.ckpt")["rows"]) >= 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_float32_weights(precision, digits, tmp_path):
    more = "--precision", precision, "--epochs", 1
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    checkpoint = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert checkpoint["network"]["fc.weight"].dtype == torch.float32
    assert ("scale" in checkpoint["scaler"]) == (precision == "float16")


@pytest.mark.slow
def test_compiled_run_leaves_the_same_names(finished, digits, tmp_path):
    assert call(main, *arguments(digits, tmp_path / "run", "--compile", "--epochs", 1)).status == 0
    saved = read_checkpoint(tmp_path / "run" / "model.pt")["state_dict"]
    assert saved.keys() == read_checkpoint(finished / "model.pt")["state_dict"].keys()


def test_compile_without_a_compiler_is_one_line(digits, tmp_path):
    given = arguments(digits, tmp_path / "run", "--compile")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    status, _, stderr = run(*given, CXX="no-such-compiler", **cache)
    assert status == 1
    assert stderr == "error: --compile needs a C++ compiler, such as g++\n"


@pytest.mark.parametrize(
    "change, where, words",
    [
        (shutil.rmtree, "val", "val"),
        (lambda path: shutil.rmtree(path) or path.mkdir(), "val/1", "val/1"),
        (shutil.rmtree, "val/3", "the class 3 is missing from"),
        (shutil.rmtree, "train/3", "the class 3 is missing from"),
    ],
    ids=["no val", "an empty class", "a class only in train", "a class only in val"],
)
def test_folders_that_cannot_be_trained_on_are_refused(change, where, words, data, tmp_path):
    change(data / where)
    assert words in refusal(main, *arguments(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given, words",
    [
        ("--epochs 0", "--epochs must be at least 1"),
        ("--batch-size 0", "--batch-size must be at least 1"),
        ("--batch-size 100", "84 training images do not fill a batch of 100"),
        ("--batch-size 1", "more than one value"),
        ("--image-size 0", "--image-size must be at least 1"),
        ("--workers -1", "--workers must not be negative"),
        ("--lr inf", "--lr must be"),
        ("--lr nan", "--lr must be"),
        ("--lr 0", "--lr must be"),
        ("--weight-decay nan", "--weight-decay must"),
        ("--label-smoothing nan", "--label-smoothing must"),
        ("--label-smoothing 1", "--label-smoothing must"),
        ("--model alexnet", "--image-size 32 is too small: AlexNet needs at least 63"),
        ("--pretrained --weights file", "cannot be used together"),
        ("--evaluate", "--evaluate needs --weights or --pretrained"),
        ("--evaluate --pretrained --resume", "cannot be used together"),
        ("--weights nowhere.pt", "nowhere.pt"),
        ("--out pyproject.toml", "cannot create the folder pyproject.toml"),
        ("--device nonsense", "--device nonsense"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, words, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words in refusal(main, *arguments(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()


def test_batch_size_must_be_divisible_by_the_processes(digits, tmp_path):
    given = arguments(digits, tmp_path / "run", "--batch-size", 15)
    status, _, stderr = run(*given, WORLD_SIZE="2")
    assert status == 1
    assert stderr == "error: --batch-size 15 must be divisible by the 2 processes\n"


@pytest.mark.parametrize(
    "given, words",
    [
        ("", "already holds a run: add --resume"),
        ("--resume --model alexnet --image-size 64", "--model resnet18, not alexnet"),
        ("--resume --epochs 3", "--epochs 2, not 3"),
        ("--resume --image-size 33", "--image-size 32, not 33"),
        ("--resume --lr 0.2", "--lr 0.1, not 0.2"),
        ("--resume --weight-decay 0", "--weight-decay 0.0001, not 0"),
        ("--resume --label-smoothing 0.1", "--label-smoothing 0.0, not 0.1"),
        ("--resume --precision bfloat16", "--precision float32, not bfloat16"),
        ("--resume --seed 1", "--seed 0, not 1"),
        ("--resume --compile", "--compile False, not True"),
        ("--resume --pretrained", "--pretrained False, not True"),
        ("--resume --weights file", "did not start from --weights"),
    ],
)
def test_resume_rejects_changed_options(given, words, finished, digits):
    before = contents(finished)
    assert words in refusal(main, *arguments(digits, finished, *given.split()))
    assert contents(finished) == before


def test_resume_rejects_another_number_of_processes(finished, digits):
    status, _, stderr = run(*arguments(digits, finished, "--resume"), launcher=TORCHRUN)
    assert status != 0
    assert "used 1 process(es), not 2" in stderr


def test_resume_rejects_other_images(finished, data):
    (data / "train" / "3" / "0.png").rename(data / "train" / "3" / "other.png")
    assert "used 84 + 33 images" in refusal(main, *arguments(data, finished, "--resume"))


def test_resume_rejects_a_damaged_checkpoint(finished, digits, tmp_path):
    (tmp_path / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes()[:-1000])
    assert "last.ckpt" in refusal(main, *arguments(digits, tmp_path, "--resume"))


def test_resume_of_a_finished_run_trains_nothing_more(finished, digits):
    before = contents(finished)
    result = call(main, *arguments(digits, finished, "--resume"))
    assert result.status == 0
    assert len(result.stdout.splitlines()) == 1
    assert contents(finished) == before

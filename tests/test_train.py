"""What `python -m examples.train` promises, on real images: scikit-learn's handwritten digits."""

from __future__ import annotations

import csv
import fcntl
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import BatchSampler

pytest.importorskip("lightning")

from examples.train import Shuffle, main, prepare
from examples.train_setup import build_parser
from examples.weights import load_file, read

ROOT = Path(__file__).parents[1]
TRAIN, VAL = 24, 11  # images of a class; two processes cannot halve what `val/` has


def write_digits(folder: Path, digits: str) -> Path:
    data = load_digits()
    for digit in digits:
        images = data.images[data.target == int(digit)][: TRAIN + VAL]
        for index, pixels in enumerate(images):
            path = folder / ("train" if index < TRAIN else "val") / digit / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).resize((32, 32)).save(path)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), "013")


def options(data: Path, out: Path, *more: str) -> list[str]:
    small = ["--image-size", "32", "--batch-size", "16", "--epochs", "3", "--workers", "1"]
    return [str(data), "--out", str(out), *small, *more]


def start(*arguments: str, **streams: int) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    command = [sys.executable, "-m", *arguments]
    threads = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=threads, text=True, **pipes)  # type: ignore


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the one line with which the command refuses the arguments."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    stderr = capsys.readouterr().err
    assert stopped.value.code == 2
    assert stderr.count("\n") == 1, stderr
    return stderr


@pytest.fixture(scope="session")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    out = tmp_path_factory.mktemp("finished") / "run"
    process = start("examples.train", *options(digits, out))
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return out, stdout, stderr


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_prints_a_line_per_epoch_and_nothing_else_into_a_pipe(
    finished: tuple[Path, str, str],
) -> None:
    _, stdout, stderr = finished
    assert [line.split(":")[0] for line in stdout.splitlines()] == [
        f"epoch {epoch}/3" for epoch in (1, 2, 3)
    ]
    assert stderr == ""


def test_it_leaves_metrics_a_picture_checkpoints_and_the_best_weights(
    finished: tuple[Path, str, str], digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = finished[0]
    assert {path.name for path in out.iterdir()} == {
        *("metrics.csv", "curves.png", "last.ckpt", "best.ckpt", "model.pt")
    }
    assert [row["epoch"] for row in rows(out)] == ["1", "2", "3"]
    with Image.open(out / "curves.png") as curves:
        assert curves.size >= (600, 300)
    classifier = load_file(out / "model.pt")
    network = classifier.model
    assert classifier.classes == ["0", "1", "3"]
    assert classifier.image_size == 32
    best = read(out / "best.ckpt")
    assert read(out / "last.ckpt")["epoch"] == 2
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, best["state_dict"][f"network.{name}"])
    assert all(tensor.is_contiguous() for tensor in read(out / "model.pt")["state_dict"].values())

    top1 = max(float(row["val_top1"]) for row in rows(out))
    capsys.readouterr()
    main(options(digits, out, "--evaluate", "--weights", str(out / "model.pt")))
    assert f"top-1 {top1:.3f} %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "epochs"),  # finished when it is killed
    [("resnet18", 0), ("resnet18", 1), pytest.param("alexnet", 1, marks=pytest.mark.slow)],
)
def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(
    model: str, epochs: int, finished: tuple[Path, str, str], digits: Path, tmp_path: Path
) -> None:
    out, whole, given = tmp_path / "run", finished[0], ["--model", model]
    if model == "alexnet":  # batch norm is ResNet-18's, dropout AlexNet's
        whole, given = tmp_path / "whole", [*given, "--image-size", "64"]
        assert start("examples.train", *options(digits, whole, *given)).wait() == 0
    process = start("examples.train", *options(digits, out, *given))
    assert process.stdout
    if epochs:
        assert process.stdout.readline().startswith("epoch 1/3")
    else:
        while not out.exists():
            time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (out / "last.ckpt").exists() == bool(epochs)

    resumed = start("examples.train", *options(digits, out, *given, "--resume"))
    stdout, _ = resumed.communicate()
    assert len(stdout.splitlines()) == 3 - epochs
    one, two = read(whole / "last.ckpt"), read(out / "last.ckpt")
    assert equal(one["state_dict"], two["state_dict"])
    assert equal(one["optimizer_states"][0]["state"], two["optimizer_states"][0]["state"])
    assert equal(*(read(folder / "model.pt")["state_dict"] for folder in (whole, out)))
    assert [row["val_loss"] for row in rows(out)] == [row["val_loss"] for row in rows(whole)]


def equal(one: object, two: object) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    return isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and torch.equal(one, two)


def test_two_processes_train_and_count_each_image_once(
    finished: tuple[Path, str, str],
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    process = start("examples.train", *options(digits, out, "--devices", "2", "--workers", "0"))
    stdout, stderr = process.communicate()
    assert (process.returncode, len(stdout.splitlines()), stderr) == (0, 3, "")
    one, two = (read(folder / "last.ckpt") for folder in (finished[0], out))
    assert one["global_step"] == two["global_step"]
    assert one["lr_schedulers"] == two["lr_schedulers"]

    weights = ["--evaluate", "--weights", str(out / "model.pt"), "--workers", "0"]
    torchrun = start(
        *("torch.distributed.run", "--nproc-per-node", "2", "--standalone"),
        *("-m", "examples.train", *options(digits, out, *weights)),
    )
    shared, _ = torchrun.communicate()
    capsys.readouterr()
    main(options(digits, out, *weights))
    assert f"of {3 * VAL} images" in shared
    assert shared == capsys.readouterr().out


@pytest.mark.parametrize("epoch", [0, 1])
def test_processes_share_each_batch_of_one(epoch: int) -> None:
    def batches(rank: int, processes: int) -> list[list[tuple[int, int]]]:
        shuffle = Shuffle(range(50), processes, rank, drop_last=True)  # type: ignore[arg-type]
        shuffle.set_epoch(epoch)
        assert len(list(shuffle)) == len(shuffle)
        return list(BatchSampler(shuffle, 8 // processes, drop_last=True))  # type: ignore

    alone, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    assert len(alone) == len(first) == len(second) == 6
    for whole, *halves in zip(alone, first, second):
        assert sorted(whole) == sorted(halves[0] + halves[1])
    assert len({index for batch in alone for index, _ in batch}) == 48


def test_an_augmentation_is_its_own_in_each_epoch_and_leaves_dropout_alone(digits: Path) -> None:
    module, _ = prepare(build_parser().parse_args(options(digits, digits / "none")))
    (digits / "none").rmdir()
    before = torch.get_rng_state()

    def first_image(epoch: int) -> torch.Tensor:
        shuffle = Shuffle(module.train_images, 1, 0)
        shuffle.set_epoch(epoch)
        image: torch.Tensor = module.train_images[0, dict(shuffle)[0]][0]
        return image

    assert torch.equal(first_image(0), first_image(0))
    assert not torch.equal(first_image(0), first_image(1))
    assert torch.equal(before, torch.get_rng_state())


def test_fine_tuning_starts_from_the_weights_with_a_new_head(
    finished: tuple[Path, str, str], tmp_path: Path
) -> None:
    data, file = write_digits(tmp_path / "data", "25"), finished[0] / "model.pt"
    given = options(data, tmp_path / "run", "--weights", str(file))
    network = prepare(build_parser().parse_args(given))[0].network
    theirs = read(file)["state_dict"]
    ours = network.state_dict()
    assert ours.pop("fc.weight").shape == (2, 512)
    assert ours.pop("fc.bias").shape == (2,)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert main(given) == 0
    assert load_file(tmp_path / "run" / "model.pt").classes == ["2", "5"]


def test_official_weights_keep_their_head_only_for_as_many_classes(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, cache / "resnet18-f37072fd.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    arguments = options(digits, tmp_path / "run", "--pretrained")
    network = prepare(build_parser().parse_args(arguments))[0].network
    assert network.state_dict()["fc.weight"].shape == (3, 512)
    assert torch.equal(network.state_dict()["conv1.weight"], weights["conv1.weight"])
    assert "(1000)" in refusal(capsys, *arguments, "--evaluate")

    for index in range(1000):
        (tmp_path / "imagenet/val" / f"n{index:08}").mkdir(parents=True)
        picture = next((digits / "val/0").iterdir())
        os.link(picture, tmp_path / "imagenet/val" / f"n{index:08}" / "image.png")
    given = [str(tmp_path / "imagenet"), "--evaluate", "--pretrained"]
    network = prepare(build_parser().parse_args(given))[0].network
    assert torch.equal(network.state_dict()["fc.weight"], weights["fc.weight"])


def test_evaluation_sees_what_the_official_transforms_make(tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_image

    for split in "train", "val":
        (tmp_path / split / "flower").mkdir(parents=True)
        picture = Image.fromarray(load_sample_image("flower.jpg"))
        picture.save(tmp_path / split / "flower" / "0.png")
    given = [str(tmp_path), "--out", str(tmp_path / "run"), "--batch-size", "1"]
    module, _ = prepare(build_parser().parse_args(given))
    seen: list[torch.Tensor] = []
    module.network.register_forward_pre_hook(lambda _, images: seen.append(images[0]))
    module.eval()(module.val_images[0, 0][0][None])
    official = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()(picture)
    torch.testing.assert_close(seen[0][0], official, rtol=0, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    finished: tuple[Path, str, str],
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished[0], out)
    checkpoint = read(out / "last.ckpt")
    checkpoint["options"]["epochs"] = 4
    checkpoint["lr_schedulers"][0]["base_lrs"] = [1e30]
    checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] = 1e30
    torch.save(checkpoint, out / "last.ckpt")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    line = refusal(capsys, *options(digits, out, "--resume", "--epochs", "4"))
    assert "the loss became nan at step 14, in epoch 4" in line
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_cannot_be_decoded_stops_the_run_naming_it(
    workers: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    broken = data / "train" / "1" / "0.png"
    broken.write_bytes(broken.read_bytes()[:100])
    given = options(data, tmp_path / "run", "--workers", workers, "--batch-size", "72")
    assert f"examples.train: {broken} cannot be decoded" in refusal(capsys, *given)


def test_a_terminal_gets_a_progress_bar_and_ctrl_c_one_line(digits: Path, tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    given = options(digits, tmp_path / "run", "--epochs", "500")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    process = start("examples.train", *given, stdout=inside)
    os.close(inside)
    shown = b""
    while b"epoch 2/500" not in shown:
        shown += os.read(terminal, 4096)
    process.send_signal(signal.SIGINT)
    while True:
        try:
            if not os.read(terminal, 4096):
                break
        except OSError:  # the other side is closed
            break
    _, stderr = process.communicate()
    assert b"loss=" in shown and b"images/s=" in shown
    assert process.returncode == 2
    assert stderr.endswith("interrupted: --resume goes on after the last finished epoch\n")
    assert stderr.count("\n") == 1, stderr


def test_a_reader_that_is_killed_ends_the_run_with_one_line(digits: Path, tmp_path: Path) -> None:
    process = start("examples.train", *options(digits, tmp_path / "run", "--epochs", "500"))
    assert process.stdout
    assert process.stdout.readline().startswith("epoch 1/500")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert stderr == "python -m examples.train: another process of this run has stopped\n"


def test_compiled_weights_keep_their_names(digits: Path, tmp_path: Path) -> None:
    given = options(digits, tmp_path / "run", "--compile")
    network = prepare(build_parser().parse_args(given))[0].network
    assert "conv1.weight" in network.state_dict()


@pytest.mark.slow
def test_a_compiled_run_ends_as_any_other(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert start("examples.train", *options(digits, out, "--compile", "--epochs", "1")).wait() == 0
    assert load_file(out / "model.pt").classes == ["0", "1", "3"]


def remove(path: Path) -> None:
    shutil.rmtree(path)


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "where", "words"),
    [
        (remove, ".", "there is no folder"),
        (remove, "train", "there is no folder"),
        (remove, "val", "there is no folder"),
        (empty, "train/1", "no valid file for the classes 1"),
        (empty, "val/1", "no valid file for the classes 1"),
        (remove, "val/3", "only one has the class 3"),
        (remove, "train/3", "only one has the class 3"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(
    change: object,
    where: str,
    words: str,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"
    shutil.copytree(digits, data)
    change(data / where)  # type: ignore[operator]
    assert words in refusal(capsys, *options(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--epochs 0", "'0' is not a whole number of 1 or more"),
        ("--batch-size -1", "'-1' is not"),
        ("--batch-size 15 --devices 2", "15 is no multiple of 2 processes"),
        ("--batch-size 100", "more than train/'s 72 images"),
        ("--batch-size 68 --devices 34", "33 images, too few for 34 processes"),
        ("--batch-size 1", "more than 1 value per channel"),
        ("--lr nan", "'nan' is not a number above 0"),
        ("--lr 0", "'0' is not a number above 0"),
        ("--label-smoothing 1", "'1' is not a number from 0 to below 1"),
        ("--image-size big", "'big' is not"),
        ("--model alexnet", "at least 63 x 63"),
        ("--model vgg", "invalid choice: 'vgg'"),
        ("--precision 8", "invalid choice: '8'"),
        ("--workers -1", "'-1' is not a whole number of 0 or more"),
        ("--seed x", "'x' is not a whole number of 0 or more"),
        ("--devices 0", "'0' is not a whole number of 1 or more"),
        ("--nodes 2", "needs torchrun"),
        ("--pretrained --weights file", "not allowed with"),
        ("--evaluate --resume", "not allowed with"),
        ("--evaluate", "needs --pretrained or --weights"),
        ("--weights nowhere.pt", "cannot read nowhere.pt"),
        ("--out pyproject.toml", "cannot make the folder pyproject.toml"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    given: str,
    words: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    assert words in refusal(capsys, *options(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("classes", "given", "words"),
    [
        ("013", "", "holds a run: add --resume"),
        ("013", "--resume", "has its 3 epochs"),
        ("013", "--resume --model alexnet --image-size 64", "holds resnet18, not alexnet"),
        ("013", "--resume --epochs 4", "holds a run with --epochs 3, not 4"),
        ("013", "--resume --lr 0.2", "holds a run with --lr 0.1, not 0.2"),
        ("013", "--resume --image-size 64", "holds a run with --image-size 32, not 64"),
        ("015", "--resume", "is for the classes 0, 1, 3 (3), not 0, 1, 5 (3)"),
    ],
)
def test_a_run_goes_on_only_as_what_it_was(
    classes: str,
    given: str,
    words: str,
    finished: tuple[Path, str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_digits(tmp_path, classes)
    before = {path.name: path.read_bytes() for path in finished[0].iterdir()}
    assert words in refusal(capsys, *options(data, finished[0], *given.split()))
    assert before == {path.name: path.read_bytes() for path in finished[0].iterdir()}


def test_a_damaged_checkpoint_is_refused(
    finished: tuple[Path, str, str],
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "last.ckpt").write_bytes((finished[0] / "last.ckpt").read_bytes()[:-1000])
    assert "is damaged" in refusal(capsys, *options(digits, tmp_path, "--resume"))


def test_a_refused_command_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    process = start("examples.train", str(tmp_path / "nowhere"))
    assert process.communicate() == (
        "",
        f"python -m examples.train: there is no folder {tmp_path / 'nowhere' / 'val'}\n",
    )
    assert process.returncode == 2

"""What `python -m examples.train` promises, on real images: scikit-learn's handwritten digits."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402

from examples import images  # noqa: E402
from examples.checkpoint_file import read_checkpoint  # noqa: E402
from examples.train import learning_rate, main  # noqa: E402
from examples.weights import load_file, load_official  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402
from tests.examples.training import ROOT, arguments, contents, write_digits  # noqa: E402


def test_first_line_says_what_is_trained_on_what(finished):
    first, *epochs = (finished.parent / "stdout").read_text().splitlines()
    for words in "resnet18", "11,178,051 parameters", "84 training", "33 validation", "3 classes":
        assert words in first
    assert "on cpu" in first or "on cuda" in first
    assert "10 steps per epoch, learning rate 0.003125" in first  # 0.1 × 8 / 256
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]


def test_files_that_are_not_images_are_counted_in_the_first_line(data, tmp_path):
    (data / "train" / "1" / "._0.png").write_bytes(b"\x00\x05\x16\x07")  # macOS leaves these
    (data / "val" / "3" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    result = call(main, *arguments(data, tmp_path / "run", "--epochs", 1))
    assert result.status == 0, result
    assert "2 other files ignored" in result.stdout.splitlines()[0]


def test_run_writes_metrics_curves_checkpoint_and_weights(finished):
    names = {"metrics.csv", "curves.png", "last.ckpt", "model.pt"}
    assert contents(finished).keys() == names
    rows = pd.read_csv(finished / "metrics.csv")
    assert list(rows["epoch"]) == [1, 2]
    assert {"lr", "train_loss", "val_top1", "val_top5", "images/s", "seconds"} <= set(rows)
    width, height = Image.open(finished / "curves.png").size
    assert width > height > 500


def test_model_file_has_class_names_and_image_size(finished):
    classifier = load_file(finished / "model.pt")
    assert classifier.classes == ["0", "1", "3"]
    assert classifier.image_size == 32


def test_default_recipe_is_sgd_with_nesterov_momentum_and_the_papers_weight_decay(finished):
    group = read_checkpoint(finished / "last.ckpt")["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert group["weight_decay"] == 1e-4


def test_given_learning_rate_is_the_peak_whatever_the_batch_size(digits, tmp_path):
    more = "--lr", 0.01, "--epochs", 1
    result = call(main, *arguments(digits, tmp_path / "run", *more))
    assert "learning rate 0.01" in result.stdout.splitlines()[0]
    last = pd.read_csv(tmp_path / "run" / "metrics.csv")["lr"][0]
    assert last == pytest.approx(learning_rate(9.5 / 10, peak=0.01))


def test_evaluate_prints_the_accuracy_of_the_best_epoch_at_the_stored_image_size(finished, digits):
    result = call(main, digits, "--weights", finished / "model.pt", "--evaluate")
    rows = pd.read_csv(finished / "metrics.csv")
    best = rows.loc[rows["val_top1"].idxmax()]
    line = f"top-1 {best.val_top1:.3f}%, loss {best.val_loss:.3f}: 33 images\n"
    assert result.stdout == line  # without top-5, which is 100 % for three classes
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
    assert "top-5" in trained.stdout
    assert load_file("runs/train/model.pt").classes[:2] == ["airplane", "automobile"]

    evaluated = call(main, "cifar10", "--weights", "runs/train/model.pt", "--evaluate")
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


def test_backbone_without_its_head_is_trained_further_but_not_evaluated(finished, digits, tmp_path):
    backbone = read_checkpoint(finished / "model.pt")["state_dict"]
    del backbone["fc.weight"], backbone["fc.bias"]
    torch.save(backbone, tmp_path / "backbone.pt")
    more = "--weights", tmp_path / "backbone.pt", "--lr", 1e-9, "--epochs", 1
    result = call(main, *arguments(digits, tmp_path / "run", *more))
    assert (result.status, result.stderr.count("holds no last layer fc")) == (0, 1), result
    tuned = load_file(tmp_path / "run" / "model.pt").network
    torch.testing.assert_close(tuned.conv1.weight, backbone["conv1.weight"])

    assert "no classes" in refusal(main, digits, "--evaluate", *more[:2])


def test_fine_tuning_on_the_same_classes_keeps_the_head(finished, digits, tmp_path):
    more = "--weights", finished / "model.pt", "--lr", 1e-9, "--epochs", 1
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    tuned = load_file(tmp_path / "run" / "model.pt")
    start = read_checkpoint(finished / "model.pt")["state_dict"]
    torch.testing.assert_close(tuned.network.fc.weight, start["fc.weight"])


@pytest.mark.parametrize(
    "digits_in_val, difference",
    [
        ("01", "only the weights have 3"),
        ("0123", "only {data} has 2"),
        ("25", "only the weights have 0, 1, 3; only {data} has 2, 5"),
    ],
    ids=["one is missing", "one is unknown", "all are others"],
)
def test_classes_that_the_weights_and_val_do_not_share_are_named(
    digits_in_val, difference, finished, tmp_path
):
    data = write_digits(tmp_path / "data", digits_in_val)
    line = refusal(main, data, "--weights", finished / "model.pt", "--evaluate")
    assert line.endswith(f": {difference.format(data=data)}\n")


def test_pretrained_starts_from_the_official_weights(official_weights, digits, tmp_path):
    more = "--pretrained", "--lr", 1e-9, "--epochs", 1  # the weights hardly move
    result = call(main, *arguments(digits, tmp_path / "run", *more))
    assert result.status == 0, result
    tuned, start = load_file(tmp_path / "run" / "model.pt").network, load_official("resnet18")
    torch.testing.assert_close(tuned.layer4[1].conv2.weight, start.network.layer4[1].conv2.weight)


def test_official_weights_are_not_evaluated_on_three_classes(official_weights, digits):
    line = refusal(main, digits, "--pretrained", "--evaluate")
    assert line == f"error: the weights are for 1000 classes, and {digits} has 3\n"


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
    assert contents(tmp_path / "run").keys() == {"last.ckpt"}  # which a new run overwrites


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_trains_float32_weights(precision, digits, tmp_path):
    more = "--precision", precision, "--epochs", 1
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    checkpoint = read_checkpoint(tmp_path / "run" / "last.ckpt")
    assert checkpoint["network"]["fc.weight"].dtype == torch.float32
    assert ("scale" in checkpoint["scaler"]) == (precision == "float16")


@pytest.mark.parametrize(
    "change, where, words",
    [
        (shutil.rmtree, "val", "val"),
        (lambda path: shutil.rmtree(path) or path.mkdir(), "val/1", "val/1"),
        (shutil.rmtree, "val/3", "the class 3 is missing"),
        (shutil.rmtree, "train/3", "the class 3 is missing"),
    ],
    ids=["no val", "an empty class", "a class only in train", "a class only in val"],
)
def test_folders_that_cannot_be_trained_on_are_refused(change, where, words, data, tmp_path):
    change(data / where)
    assert words in refusal(main, *arguments(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_images_of_one_class_are_refused_as_their_folders_may_be_too_deep(finished, tmp_path):
    data = write_digits(tmp_path / "data", "3")
    words = f"error: {data / 'val'}: all images are of one class, 3: "
    assert refusal(main, *arguments(data, tmp_path / "run")).startswith(words)
    given = data, "--weights", finished / "model.pt", "--evaluate"
    assert refusal(main, *given).startswith(words)


@pytest.mark.parametrize(
    "given, words",
    [
        ("--epochs 0", "--epochs must be at least 1"),
        ("--batch-size 0", "--batch-size must be at least 1"),
        ("--batch-size 100", "84 training images do not fill a batch of 100"),
        ("--batch-size 1", "more than one value"),
        ("--seed -1", "--seed must be at least 0 and less than 2**32"),
        (f"--seed {2**64}", "--seed must be at least 0 and less than 2**32"),
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
        ("--weights nowhere.pt", "nowhere.pt"),
        ("--out pyproject.toml", "cannot write pyproject.toml/last.ckpt"),
        ("--device nonsense", "--device nonsense"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, words, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words in refusal(main, *arguments(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()

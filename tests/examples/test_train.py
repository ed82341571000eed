"""What `python -m examples.train` promises, on real images: scikit-learn's handwritten digits."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402

from examples import evaluate  # noqa: E402
from examples.lib import data  # noqa: E402
from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.train import learning_rate, main  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402
from tests.examples.training import ROOT, arguments, contents, write_digits  # noqa: E402
from tests.examples.weights import load  # noqa: E402


def optimizer_group(out: Path) -> dict:
    """Return what the optimizer's last step used."""
    return read_checkpoint(out / "last.ckpt")["optimizer"]["param_groups"][0]


def one_step(data: Path, out: Path, *more: object) -> dict:
    """Train for one step on all images; return what last.ckpt holds."""
    small = "--batch-size", 84, "--epochs", 1, "--workers", 0
    result = call(main, *arguments(data, out, *small, *more))
    assert result.status == 0, result
    return read_checkpoint(out / "last.ckpt")


def test_first_line_says_what_is_trained_on_what(finished):
    first, *epochs = (finished.parent / "stdout").read_text().splitlines()
    for words in "resnet18", "11,178,051 parameters", "84 training", "33 validation", "3 classes":
        assert words in first
    assert "on cpu" in first or "on cuda" in first
    assert "10 steps per epoch, learning rate 0.003125" in first  # 0.1 × 8 / 256
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"]


def test_network_learns_what_it_is_validated_on(finished):
    first, last = (row for _, row in pd.read_csv(finished / "metrics.csv").iterrows())
    assert last.train_loss < 0.75 * first.train_loss
    assert last.val_loss < 0.8
    assert last.val_top1 > 60  # of three classes


def test_optimizer_takes_the_falling_learning_rate(finished):
    last = pd.read_csv(finished / "metrics.csv")["lr"][1]
    assert optimizer_group(finished)["lr"] == pytest.approx(last)
    assert last < 0.003125 / 100


def test_run_writes_metrics_curves_checkpoint_and_weights(finished):
    names = {"metrics.csv", "curves.png", "last.ckpt", "model.pt"}
    assert contents(finished).keys() == names
    rows = pd.read_csv(finished / "metrics.csv")
    assert list(rows["epoch"]) == [1, 2]
    assert {"lr", "train_loss", "val_top1", "val_top5", "images/s", "seconds"} <= set(rows)
    width, height = Image.open(finished / "curves.png").size
    assert width > height > 500


def test_model_file_has_class_names_and_image_size(finished):
    classifier = load(finished / "model.pt")
    assert classifier.classes == ["0", "1", "3"]
    assert classifier.image_size == 32


def test_default_recipe_is_sgd_with_nesterov_momentum_and_the_papers_weight_decay(finished):
    group = optimizer_group(finished)
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert group["weight_decay"] == 1e-4


@pytest.mark.parametrize("batch_size", [28, 84])
def test_given_learning_rate_is_the_peak_whatever_the_batch_size(batch_size, digits, tmp_path):
    out = tmp_path / "run"
    more = "--lr", 0.01, "--epochs", 1, "--batch-size", batch_size
    result = call(main, *arguments(digits, out, *more))
    assert "learning rate 0.01" in result.stdout.splitlines()[0]
    progress = 1 - batch_size / 84 / 2  # of the run, at the middle of the last step
    cosine = math.cos(math.pi * (progress - 0.05) / 0.95)
    assert optimizer_group(out)["lr"] == pytest.approx(0.01 * (1 + cosine) / 2)


def test_weight_decay_pulls_the_weights_to_zero(finished, digits, tmp_path):
    start = read_checkpoint(finished / "model.pt")["state_dict"]["conv1.weight"]
    given = "--weights", finished / "model.pt", "--weight-decay"
    without, decayed = (one_step(digits, tmp_path / decay, *given, decay) for decay in ("0", "0.5"))
    moved = without["network"]["conv1.weight"] - decayed["network"]["conv1.weight"]
    rate = 1.9 * optimizer_group(tmp_path / "0")["lr"]  # with Nesterov's momentum
    torch.testing.assert_close(moved, rate * 0.5 * start, rtol=1e-3, atol=1e-6)


def test_label_smoothing_costs_a_network_that_is_sure(finished, digits, tmp_path):
    given = "--weights", finished / "model.pt", "--label-smoothing"
    plain, smooth = (
        one_step(digits, tmp_path / part, *given, part)["rows"][0] for part in ("0", "0.5")
    )
    assert smooth["train_loss"] > plain["train_loss"] + 0.1
    assert smooth["train_top1"] == plain["train_top1"]


def test_evaluate_prints_the_accuracy_of_the_best_epoch_at_the_stored_image_size(finished, digits):
    result = call(evaluate.main, digits, "--weights", finished / "model.pt")
    rows = pd.read_csv(finished / "metrics.csv")
    best = rows.loc[rows["val_top1"].idxmax()]
    line = f"top-1 {best.val_top1:.3f}%, loss {best.val_loss:.3f}: 33 images\n"
    assert result.stdout == line  # without top-5, which is 100 % for three classes
    assert result.status == 0


def test_evaluate_reads_nothing_but_val(finished, data, tmp_path):
    shutil.rmtree(data / "train")
    result = call(evaluate.main, data, "--weights", finished / "last.ckpt")
    assert result.status == 0, result
    assert "33 images" in result.stdout


def test_cifar10_is_trained_on_and_evaluated(cifar10):
    small = ("--image-size", 32, "--batch-size", 8, "--epochs", 1)
    trained = call(main, "cifar10", *small)
    assert "40 training and 20 validation images of 10 classes" in trained.stdout, trained
    assert "top-5" in trained.stdout
    assert load("runs/train/model.pt").classes[:2] == ["airplane", "automobile"]

    evaluated = call(evaluate.main, "cifar10", "--weights", "runs/train/model.pt")
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

    def open_image(path, min_size):
        opened.append(path)
        return original(path, min_size)

    original = data.open_image
    monkeypatch.setattr(data, "open_image", open_image)
    more = "--workers", 0, "--batch-size", 28
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    seen = [path for path in opened if "train" in path.parts]
    first, second = seen[:84], seen[84:]
    assert len(set(first)) == len(set(second)) == 84
    assert first != second


def test_fine_tuning_keeps_weights_and_image_size_and_replaces_the_head(finished, tmp_path):
    data, file = write_digits(tmp_path / "data", "25"), finished / "model.pt"
    (data / "train" / "2" / "._0.png").write_bytes(b"\x00\x05\x16\x07")  # macOS leaves these
    (data / "val" / "5" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    more = "--weights", file, "--lr", 1e-9, "--epochs", 1, "--batch-size", 28  # hardly moves
    result = call(main, data, "--out", tmp_path / "run", *more)
    assert result.status == 0, result
    assert "2 other files ignored" in result.stdout.splitlines()[0]
    tuned = load(tmp_path / "run" / "model.pt")
    assert (tuned.classes, tuned.image_size) == (["2", "5"], 32)
    start = read_checkpoint(file)["state_dict"]
    torch.testing.assert_close(tuned.network.layer4[1].conv2.weight, start["layer4.1.conv2.weight"])
    assert tuned.network.fc.out_features == 2


def test_head_of_weights_without_class_names_is_kept_for_as_many_classes(finished, tmp_path):
    data, start = write_digits(tmp_path / "data", "257"), read_checkpoint(finished / "model.pt")
    torch.save(start["state_dict"], tmp_path / "unnamed.pt")
    one_step(data, tmp_path / "run", "--weights", tmp_path / "unnamed.pt", "--lr", 1e-9)
    tuned = load(tmp_path / "run" / "model.pt")
    assert tuned.classes == ["2", "5", "7"]
    torch.testing.assert_close(tuned.network.fc.weight, start["state_dict"]["fc.weight"])


def test_alexnet_is_fine_tuned_with_defaults_of_its_own(official_weights, digits, tmp_path):
    out = tmp_path / "run"
    one_step(digits, out, "--model", "alexnet", "--pretrained", "--image-size", 64)
    tuned, start = load(out / "model.pt").network, load(None, "alexnet").network
    assert tuned.fc3.out_features == 3
    change = (tuned.conv1.weight - start.conv1.weight).norm() / start.conv1.weight.norm()
    assert 0 < change < 0.1
    cosine = math.cos(math.pi * (0.5 - 0.05) / 0.95)
    group = optimizer_group(out)
    assert group["lr"] == pytest.approx(0.02 * 84 / 256 * (1 + cosine) / 2)
    assert group["weight_decay"] == 5e-4


def test_backbone_without_its_head_is_trained_further_but_not_evaluated(finished, digits, tmp_path):
    backbone = read_checkpoint(finished / "model.pt")["state_dict"]
    del backbone["fc.weight"], backbone["fc.bias"]
    torch.save(backbone, tmp_path / "backbone.pt")
    more = "--weights", tmp_path / "backbone.pt", "--lr", 1e-9, "--epochs", 1
    result = call(main, *arguments(digits, tmp_path / "run", *more))
    assert (result.status, result.stderr.count("holds no last layer fc")) == (0, 1), result
    tuned = load(tmp_path / "run" / "model.pt").network
    torch.testing.assert_close(tuned.conv1.weight, backbone["conv1.weight"])

    assert "no classes" in refusal(evaluate.main, digits, *more[:2])


def test_fine_tuning_on_the_same_classes_keeps_the_head(finished, digits, tmp_path):
    more = "--weights", finished / "model.pt", "--lr", 1e-9, "--epochs", 1
    assert call(main, *arguments(digits, tmp_path / "run", *more)).status == 0
    tuned = load(tmp_path / "run" / "model.pt")
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
    line = refusal(evaluate.main, data, "--weights", finished / "model.pt")
    assert line.endswith(f": {difference.format(data=data)}\n")


def test_pretrained_starts_from_the_official_weights(official_weights, digits, tmp_path):
    more = "--pretrained", "--lr", 1e-9, "--epochs", 1  # the weights hardly move
    result = call(main, *arguments(digits, tmp_path / "run", *more))
    assert result.status == 0, result
    tuned, start = load(tmp_path / "run" / "model.pt").network, load(None, "resnet18")
    torch.testing.assert_close(tuned.layer4[1].conv2.weight, start.network.layer4[1].conv2.weight)


def test_official_weights_are_evaluated_on_a_thousand_folders_of_any_name(
    official_weights, tmp_path
):
    for index in range(1000):
        (tmp_path / "val" / f"n{index:08}").mkdir(parents=True)
        (tmp_path / "val" / f"n{index:08}" / "cat.jpg").symlink_to(ROOT / "docs" / "cat.jpg")
    result = call(evaluate.main, tmp_path, "--pretrained", "--image-size", 32, "--workers", 0)
    assert result.stdout.startswith("top-1 0.100%, top-5 0.500%, loss "), result
    assert result.stdout.endswith(": 1,000 images\n")


def test_official_weights_are_not_evaluated_on_three_classes(official_weights, digits):
    line = refusal(evaluate.main, digits, "--pretrained")
    assert line == f"error: the weights are for 1000 classes, and {digits} has 3\n"


@pytest.mark.parametrize("split, workers", [("train", 1), ("val", 0)])
def test_damaged_image_stops_the_run_with_its_name(split, workers, data, tmp_path):
    damaged = data / split / "1" / "0.png" if split == "train" else data / split / "1" / "30.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    more = "--workers", workers, "--batch-size", "84"
    result = call(main, *arguments(data, tmp_path / "run", *more))
    assert result.status == 1
    assert result.stderr.startswith(f"error: {damaged}: ")
    assert result.stderr.count("\n") == 1
    assert contents(tmp_path / "run").keys() == {"last.ckpt"}  # which a new run overwrites


def test_lower_precision_rounds_the_forward_pass_but_not_the_weights(digits, tmp_path):
    runs = {
        name: one_step(digits, tmp_path / name, "--precision", name)
        for name in ("float32", "bfloat16", "float16")
    }
    exact = runs["float32"]["rows"][0]["train_loss"]
    for name in "bfloat16", "float16":
        loss = runs[name]["rows"][0]["train_loss"]
        assert 0 < abs(loss - exact) < 0.02 * exact
        assert runs[name]["network"]["fc.weight"].dtype == torch.float32
        assert ("scale" in runs[name]["scaler"]) == (name == "float16")


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
    given = data, "--weights", finished / "model.pt"
    assert refusal(evaluate.main, *given).startswith(words)


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
        ("--weights nowhere.pt", "nowhere.pt"),
        ("--out pyproject.toml", "cannot write pyproject.toml/last.ckpt"),
        ("--device nonsense", "--device nonsense"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, words, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words in refusal(main, *arguments(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()

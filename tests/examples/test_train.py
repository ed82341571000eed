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
from examples.lib.runs import State, best_epoch  # noqa: E402
from examples.train import learning_rate, main  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402
from tests.examples.training import (  # noqa: E402
    ROOT,
    TIMEOUT,
    arguments,
    contents,
    start,
    wait_for_line,
    write_digits,
)
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
    first, *others = (finished.parent / "stdout").read_text().splitlines()
    for words in "resnet18", "11,178,051 parameters", "84 training", "33 validation", "3 classes":
        assert words in first
    assert "on cpu" in first or "on cuda" in first
    assert "10 steps per epoch, learning rate 0.003125" in first  # 0.1 × 8 / 256
    assert others[0].startswith("all weights are random: 84 images are few for that")
    assert [line.split(":")[0] for line in others[1:3]] == ["epoch 1/2", "epoch 2/2"]


def test_last_lines_judge_the_best_epoch(finished):
    lines = (finished.parent / "stdout").read_text().splitlines()[4:]
    rows = pd.read_csv(finished / "metrics.csv")
    best = rows.loc[rows["val_top1"].idxmax()]
    assert lines[0] == f"best epoch: {best.epoch:.0f}, on the validation images"
    assert lines[1].startswith(f"top-1 {best.val_top1:.2f}% of 33 images (95% interval: ")
    assert lines[-1].startswith(f"{finished}: model.pt, predictions.csv, ")


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
    judgment = {"predictions.csv", "classes.csv", "confusion.png", "mistakes.png"}
    assert contents(finished).keys() == names | judgment | {".lock"}
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


def test_cifar10_is_trained_on_and_evaluated(cifar10):
    small = ("--image-size", 32, "--batch-size", 8, "--epochs", 1)
    trained = call(main, "cifar10", *small)
    assert "40 training and 20 validation images of 10 classes" in trained.stdout, trained
    assert "top-5" in trained.stdout
    assert load("runs/train/model.pt").classes[:2] == ["airplane", "automobile"]

    evaluated = call(evaluate.main, "cifar10", "--weights", "runs/train/model.pt")
    assert evaluated.stdout.startswith("cifar10: the validation images\ntop-1 "), evaluated
    assert "of 20 images" in evaluated.stdout


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
    assert group["lr"] == pytest.approx(0.02 / 10 * 84 / 256 * (1 + cosine) / 2)
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
    out = "--out", tmp_path / "out"
    result = call(evaluate.main, tmp_path, "--pretrained", "--image-size", 32, "--workers", 0, *out)
    _, top1, top5, *_ = result.stdout.splitlines()
    assert top1.startswith("top-1 0.10% of 1,000 images"), result
    assert top5 == "top-5 0.50%"
    assert "the folders in this order: n00000000, n00000001, n00000002" in result.stderr


def test_official_weights_are_not_evaluated_on_three_classes(official_weights, digits):
    line = refusal(evaluate.main, digits, "--pretrained")
    assert line == f"error: the weights are for 1000 classes, and {digits} has 3\n"


@pytest.mark.parametrize("workers", [1, 0])
def test_damaged_images_are_all_named_before_anything_is_written(workers, data, tmp_path):
    damaged = [data / "train" / "1" / "0.png", data / "val" / "1" / "30.png"]
    for file in damaged:
        file.write_bytes(file.read_bytes()[:100])
    result = call(main, *arguments(data, tmp_path / "run", "--workers", workers))
    *names, error = result.stderr.splitlines()
    assert [name.split(": ")[1] for name in names] == [str(file) for file in damaged]
    assert error == ("error: 2 of 117 images cannot be used: remove them, or add --skip-damaged")
    assert result.status == 1
    assert not (tmp_path / "run").exists()

    more = "--workers", workers, "--epochs", 1, "--skip-damaged"
    result = call(main, *arguments(data, tmp_path / "run", *more))
    assert result.status == 0, result
    assert "83 training and 32 validation images" in result.stdout
    assert "note: 2 of 117 images cannot be used and are left out" in result.stderr


def test_image_that_is_damaged_after_the_check_is_named_in_one_line(data, tmp_path):
    process = start(*arguments(data, tmp_path / "run", "--epochs", 100))
    wait_for_line(process, "epoch 1")
    damaged = data / "val" / "1" / "30.png"
    damaged.write_bytes(damaged.read_bytes()[:100])
    _, stderr = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert stderr.startswith(f"error: {damaged}: ")
    assert stderr.count("\n") == 1


def test_of_equal_accuracies_the_epoch_with_the_lowest_loss_is_the_best():
    accuracies = (50, 1.0), (90, 0.5), (90, 0.2), (90, 0.3), (80, 0.1)
    rows = [
        {"epoch": epoch, "val_top1": top1, "val_loss": loss}
        for epoch, (top1, loss) in enumerate(accuracies, start=1)
    ]
    assert best_epoch(State(None, None, None, rows)) == 3


def test_a_head_for_the_same_classes_is_put_into_the_order_of_the_folders(
    finished, digits, tmp_path
):
    saved = read_checkpoint(finished / "model.pt")
    saved["classes"] = [saved["classes"][index] for index in (2, 0, 1)]
    for name in "fc.weight", "fc.bias":
        saved["state_dict"][name] = saved["state_dict"][name][[2, 0, 1]]
    torch.save(saved, tmp_path / "shuffled.pt")
    judged = [
        call(evaluate.main, digits, "--weights", file, "--out", tmp_path / "out").stdout
        for file in (finished / "model.pt", tmp_path / "shuffled.pt")
    ]
    assert judged[0] == judged[1]

    given = "--weights", tmp_path / "shuffled.pt", "--lr", 1e-9, "--epochs", 1
    result = call(main, *arguments(digits, tmp_path / "run", *given))
    assert "the last layer fc is that of the weights" in result.stdout, result
    tuned, start = (load(folder / "model.pt").network for folder in (tmp_path / "run", finished))
    torch.testing.assert_close(tuned.fc.weight, start.fc.weight)


def test_the_order_of_classes_without_names_is_said_and_can_be_numeric(finished, tmp_path):
    data = write_digits(tmp_path / "data", "013")
    for part in "train", "val":
        (data / part / "3").rename(data / part / "10")
        (data / part / "1").rename(data / part / "9")
    torch.save(read_checkpoint(finished / "model.pt")["state_dict"], tmp_path / "unnamed.pt")
    given = data, "--weights", tmp_path / "unnamed.pt", "--image-size", 32, "--out", tmp_path
    as_text = call(evaluate.main, *given)
    assert "order: 0, 10, 9 (as text; --numeric-order takes them as numbers)" in as_text.stderr
    as_numbers = call(evaluate.main, *given, "--numeric-order")
    assert "order: 0, 9, 10\n" in as_numbers.stderr
    named = call(evaluate.main, write_digits(tmp_path / "same", "013"), *given[1:])
    assert as_numbers.stdout.splitlines()[1] == named.stdout.splitlines()[1]
    assert as_numbers.stdout.splitlines()[1] != as_text.stdout.splitlines()[1]


def test_names_of_classes_that_a_mac_wrote_are_the_same(tmp_path):
    data = write_digits(tmp_path / "data", "13")
    (data / "train" / "1").rename(data / "train" / "cafe\u0301")
    (data / "val" / "1").rename(data / "val" / "café")
    result = call(main, *arguments(data, tmp_path / "run", "--epochs", 1))
    assert result.status == 0, result
    assert load(tmp_path / "run" / "model.pt").classes == ["3", "café"]


def test_a_frozen_network_learns_in_its_last_layer_only(finished, tmp_path):
    data = write_digits(tmp_path / "data", "257")
    given = "--weights", finished / "model.pt", "--freeze"
    result = call(main, *arguments(data, tmp_path / "run", *given, "--epochs", 10))
    assert result.status == 0, result
    assert "the last layer fc is new" in result.stdout
    assert pd.read_csv(tmp_path / "run" / "metrics.csv")["val_top1"].max() > 80
    tuned, start = (
        read_checkpoint(folder / "model.pt")["state_dict"]
        for folder in (tmp_path / "run", finished)
    )
    for name in start:
        assert torch.equal(tuned[name], start[name]) == (not name.startswith("fc.")), name
    judged = call(evaluate.main, data, "--weights", tmp_path / "run" / "model.pt")
    _, judgment = result.stdout.split("on the validation images\n")
    assert judgment.splitlines()[:-1] == judged.stdout.splitlines()[1:-1]


def test_a_frozen_run_continues_as_if_it_had_not_been_stopped(finished, digits, tmp_path):
    given = "--weights", finished / "model.pt", "--freeze", "--epochs", 2
    assert call(main, *arguments(digits, tmp_path / "whole", *given)).status == 0
    process = start(*arguments(digits, tmp_path / "killed", *given))
    wait_for_line(process, "epoch 1")
    process.kill()
    process.communicate(timeout=TIMEOUT)
    resumed = call(main, "--resume", "--out", tmp_path / "killed")
    assert resumed.status == 0, resumed
    again, expected = (
        read_checkpoint(tmp_path / name / "last.ckpt")["network"] for name in ("killed", "whole")
    )
    torch.testing.assert_close(again, expected, rtol=1e-6, atol=1e-6)  # threads differ


def test_class_weights_find_a_rare_class(finished, data, tmp_path):
    for file in sorted((data / "train" / "3").iterdir())[2:]:
        file.unlink()  # 2 of 58 images
    weights = "--weights", finished / "model.pt", "--freeze", "--epochs", 5, "--lr", 0.003
    recalls = []
    for more in (), ("--class-weights",):
        out = tmp_path / f"run{len(more)}"
        assert call(main, *arguments(data, out, *weights, *more)).status == 0
        recalls.append(pd.read_csv(out / "classes.csv")["recall"][2])
    assert recalls[0] < recalls[1]


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call(main, *arguments(digits, "~/run", "--epochs", 1)).status == 0
    assert (tmp_path / "run" / "model.pt").exists()


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
        (shutil.rmtree, "val", "has train/ and no val/: add {data}/val, or give {data}/train as"),
        (shutil.rmtree, "train", "has val/ and no train/: add {data}/train, or give {data}/val as"),
        (lambda path: path.rename(path.with_name("test")), "val", "has train/ and no val/"),
        (lambda path: shutil.rmtree(path) or path.mkdir(), "val/1", "val/1"),
        (shutil.rmtree, "val/3", "the class 3 is missing"),
        (shutil.rmtree, "train/3", "the class 3 is missing"),
    ],
    ids=[
        "no val",
        "no train",
        "val is called test",
        "an empty class",
        "a class only in train",
        "a class only in val",
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(change, where, words, data, tmp_path):
    change(data / where)
    assert words.format(data=data) in refusal(main, *arguments(data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_images_of_one_class_are_refused_as_their_folders_may_be_too_deep(finished, tmp_path):
    data = write_digits(tmp_path / "data", "3")
    words = "error: {}: all images are of one class, 3: "
    line = refusal(main, *arguments(data, tmp_path / "run"))
    assert line.startswith(words.format(data / "train"))
    given = data, "--weights", finished / "model.pt"
    assert refusal(evaluate.main, *given).startswith(words.format(data / "val"))


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
        ("--val-fraction 0.3", "--val-fraction is for a folder that is split"),
        ("--val-fraction 1", "--val-fraction must be between 0 and 1"),
        ("--freeze", "--freeze trains the last layer only: give the weights of the others"),
        ("--weights nowhere.pt", "nowhere.pt"),
        ("--out pyproject.toml", "cannot write to pyproject.toml: "),
        ("--device nonsense", "--device nonsense"),
    ],
)
def test_options_that_make_no_sense_are_refused(given, words, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert words in refusal(main, *arguments(digits, tmp_path / "run", *given.split()))
    assert not (tmp_path / "run").exists()

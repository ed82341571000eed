"""`python -m examples.evaluate` shows what a network gets wrong, and how."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

for package in ("tyro", "pandas", "matplotlib", "tqdm", "sklearn"):
    pytest.importorskip(package)

import pandas as pd  # noqa: E402
from sklearn import metrics  # noqa: E402

from examples import evaluate  # noqa: E402
from examples.lib.checkpoints import read_checkpoint  # noqa: E402
from examples.lib.metrics import Predictions, wilson_interval  # noqa: E402
from examples.lib.report import describe, draw_confusion  # noqa: E402
from tests.examples.command import call, refusal  # noqa: E402


@pytest.fixture(scope="module")
def judged(finished, digits, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder that a judgment has left, and what was printed."""
    out = tmp_path_factory.mktemp("judged")
    result = call(evaluate.main, digits, "--weights", finished / "model.pt", "--out", out)
    assert (result.status, result.stderr) == (0, ""), result
    return out, result.stdout.splitlines()


def predictions_of(labels: list[int], answers: list[int], num_classes: int, sure: float = 0.8):
    """Return predictions with these answers, of which the network is so sure."""
    count = len(labels)
    return Predictions(
        labels=np.array(labels),
        classes=np.array(answers)[:, None],
        probabilities=np.full((count, 1), sure, "float32"),
        losses=np.ones(count, "float32"),
        num_classes=num_classes,
    )


def test_the_accuracy_is_that_of_the_best_epoch_at_the_stored_image_size(judged, finished):
    _, lines = judged
    rows = pd.read_csv(finished / "metrics.csv")
    best = rows.loc[rows["val_top1"].idxmax()]
    assert lines[0].endswith(": the validation images")
    assert lines[1].startswith(f"top-1 {best.val_top1:.2f}% of 33 images (95% interval: ")
    assert lines[1].endswith(f"loss {best.val_loss:.3f}")
    assert not any("top-5" in line for line in lines)  # of three classes, it is 100 %


def test_reads_nothing_but_val(finished, data, tmp_path):
    shutil.rmtree(data / "train")
    given = "--weights", finished / "last.ckpt", "--out", tmp_path / "out"
    result = call(evaluate.main, data, *given)
    assert result.status == 0, result
    assert "33 images" in result.stdout


def test_predictions_have_a_row_for_each_file_with_its_most_likely_classes(judged, digits):
    out, lines = judged
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert {row["file"] for row in rows} == {
        str(path.relative_to(digits)) for path in (digits / "val").rglob("*.png")
    }
    for row in rows:
        assert row["class"] == Path(row["file"]).parts[1]
        assert (row["answer 1"] == row["class"]) == (row["correct"] == "True")
        probabilities = [float(row[f"probability {place}"]) for place in (1, 2, 3)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
        assert probabilities == sorted(probabilities, reverse=True)
    right = sum(row["correct"] == "True" for row in rows)
    assert lines[1].startswith(f"top-1 {100 * right / 33:.2f}% ")


def test_the_table_of_classes_has_scikit_learns_precision_and_recall(judged):
    out, _ = judged
    rows = pd.read_csv(out / "predictions.csv", dtype=str)
    table = pd.read_csv(out / "classes.csv", dtype={"class": str})
    precision, recall, _, images = metrics.precision_recall_fscore_support(
        rows["class"], rows["answer 1"], labels=table["class"], zero_division=np.nan
    )
    np.testing.assert_allclose(table["precision"], precision, rtol=1e-5)
    np.testing.assert_allclose(table["recall"], recall, rtol=1e-5)
    assert list(table["images"]) == list(images)


def test_pictures_of_the_confusion_and_of_the_mistakes_are_drawn(judged):
    out, lines = judged
    for name in "confusion.png", "mistakes.png":
        width, height = Image.open(out / name).size
        assert min(width, height) > 300
        assert name in lines[-1]


def test_a_damaged_image_is_named_and_can_be_left_out(finished, data, tmp_path):
    (data / "val" / "1" / "30.png").write_text("no image")
    given = data, "--weights", finished / "model.pt", "--out", tmp_path / "out"
    result = call(evaluate.main, *given)
    assert result.stderr.startswith(f"damaged: {data}/val/1/30.png: "), result
    assert "1 of 33 images cannot be used: remove them, or add --skip-damaged" in result.stderr
    assert not (tmp_path / "out").exists()
    assert "of 32 images" in call(evaluate.main, *given, "--skip-damaged").stdout


def test_one_class_that_is_never_found_is_seen_in_the_lines():
    labels, answers = [0] * 95 + [1] * 5, [0] * 100
    lines = describe(predictions_of(labels, answers, 2), ["good", "defect"])
    assert lines[0].startswith("top-1 95.00% of 100 images (95% interval: 88.8 to 97.8)")
    assert "mean over the classes 50.00%" in lines
    assert "worst classes: defect 0.0% of 5" in lines
    assert "most frequent mistake: defect taken for good, 5 of 5" in lines


def test_confidence_is_said_with_how_often_it_is_right():
    lines = describe(predictions_of([0, 1, 1, 1], [0, 0, 1, 1], 2, sure=0.95), ["a", "b"])
    assert (
        lines[-1] == "with a probability of 0.9 or more: 100.0% of the images, 75.0% of them right"
    )


def test_the_interval_of_an_accuracy_is_wilsons():
    stats = pytest.importorskip("scipy.stats")
    for right, count in (373, 400), (0, 10), (10, 10):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        interval = wilson_interval(right, count)
        np.testing.assert_allclose(interval, 100 * np.array(expected), atol=0.01)


@pytest.mark.parametrize("num_classes", [2, 1000])
def test_the_confusion_of_two_and_of_a_thousand_classes_is_a_picture_that_can_be_shown(
    num_classes, tmp_path
):
    generator = np.random.default_rng(0)
    labels = generator.integers(num_classes, size=3000)
    answers = np.where(generator.random(3000) < 0.7, labels, (labels + 1) % num_classes)
    classes = [f"${index}$ class" for index in range(num_classes)]  # no formulas
    with (tmp_path / "confusion.png").open("wb") as file:
        draw_confusion(predictions_of(list(labels), list(answers), num_classes), classes, file)
    width, height = Image.open(tmp_path / "confusion.png").size
    assert max(width, height) < 3000


def test_logits_that_are_not_finite_are_an_error_with_the_precision_in_it(
    finished, digits, tmp_path
):
    saved = read_checkpoint(finished / "model.pt")
    saved["state_dict"]["fc.bias"] += 1e38
    saved["state_dict"]["fc.weight"] *= 1e38
    torch.save(saved, tmp_path / "large.pt")
    line = refusal(evaluate.main, digits, "--weights", tmp_path / "large.pt", "--out", tmp_path)
    assert "the logits are not finite in float32" in line

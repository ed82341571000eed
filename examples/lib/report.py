"""What a judgment of a network leaves: a few lines, two tables and two pictures."""

from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from examples.lib.command import escape
from examples.lib.data import LabeledImages
from examples.lib.metrics import Predictions, wilson_interval
from examples.lib.results import new_figure, write_atomically

FILES = ("predictions.csv", "classes.csv", "confusion.png", "mistakes.png")
MAX_CLASSES_DRAWN = 50  # in confusion.png. Of more classes, it shows those that are most confused.
MOST_CONFUSED = 30
MISTAKES_DRAWN = 24


def write_report(folder: Path, predictions: Predictions, images: LabeledImages) -> None:
    """Write predictions.csv, classes.csv, confusion.png and mistakes.png.

    Args:
        folder: for the files.
        predictions: of all images, in their order.
        images: the images that were classified.

    Raises:
        UserError: this is not possible.
    """
    import pandas as pd

    tables = {
        "predictions.csv": pd.DataFrame(prediction_rows(predictions, images)),
        "classes.csv": pd.DataFrame(class_rows(predictions, images.classes)),
    }
    for name, table in tables.items():
        write = partial(table.to_csv, index=False, float_format="%.6g", errors="surrogateescape")
        write_atomically(folder / name, write)
    write_atomically(folder / "confusion.png", partial(draw_confusion, predictions, images.classes))
    write_atomically(folder / "mistakes.png", partial(draw_mistakes, predictions, images))


def describe(predictions: Predictions, classes: list[str]) -> list[str]:
    """Return the lines that judge a network by its predictions."""
    count = len(predictions.labels)
    low, high = wilson_interval(int(predictions.correct.sum()), count)
    lines = [
        f"top-1 {predictions.top1:.2f}% of {count:,} images (95% interval: {low:.1f} to "
        f"{high:.1f}), loss {predictions.loss:.3f}"
    ]
    if len(classes) > 5:
        lines.append(f"top-5 {predictions.top5:.2f}%")
    if differs_by_class(predictions):
        lines.append(f"mean over the classes {predictions.class_mean:.2f}%")

    rows = class_rows(predictions, classes)
    worst = sorted((row for row in rows if row["recall"] < 1), key=lambda row: row["recall"])[:3]
    if not predictions.correct.all():
        found = (f"{row['class']} {row['recall']:.1%} of {row['images']:,}" for row in worst)
        lines.append(f"worst classes: {', '.join(found)}")
        row = max(rows, key=lambda row: row["times"])
        lines.append(
            f"most frequent mistake: {row['class']} taken for {row['taken for']}, "
            f"{row['times']:,} of {row['images']:,}"
        )
    sure = predictions.probabilities[:, 0] >= 0.9
    if sure.any():
        lines.append(
            f"with a probability of 0.9 or more: {sure.mean():.1%} of the images, "
            f"{predictions.correct[sure].mean():.1%} of them right"
        )
    return [escape(line) for line in lines]


def differs_by_class(predictions: Predictions) -> bool:
    """Return whether the mean over the classes says something else than the accuracy."""
    return abs(predictions.class_mean - predictions.top1) >= 1


# Tables


def prediction_rows(predictions: Predictions, images: LabeledImages) -> list[dict[str, Any]]:
    """Return one row for each image: its class, and its most likely classes."""
    names = images.classes
    rows = []
    for index, label in enumerate(predictions.labels):
        row: dict[str, Any] = {
            "file": images.name(index),
            "class": names[label],
            "correct": bool(predictions.correct[index]),
        }
        best = zip(predictions.classes[index], predictions.probabilities[index], strict=True)
        for place, (found, probability) in enumerate(best, start=1):
            row[f"answer {place}"] = names[found]
            row[f"probability {place}"] = probability
        rows.append(row)
    return rows


def class_rows(predictions: Predictions, classes: list[str]) -> list[dict[str, Any]]:
    """Return one row for each class. What cannot be computed is NaN: no image has this answer."""
    confusion = predictions.confusion
    right = confusion.diagonal()
    wrong = confusion - np.diag(right)
    with np.errstate(invalid="ignore"):
        recall, precision = right / confusion.sum(axis=1), right / confusion.sum(axis=0)
    return [
        {
            "class": name,
            "images": int(confusion[index].sum()),
            "recall": float(recall[index]),
            "precision": float(precision[index]),
            "taken for": classes[wrong[index].argmax()] if wrong[index].any() else "",
            "times": int(wrong[index].max()),
        }
        for index, name in enumerate(classes)
    ]


# Pictures


def draw_confusion(predictions: Predictions, classes: list[str], file: BinaryIO) -> None:
    """Draw how many images of each class are taken for each class, as a PNG file."""
    confusion = predictions.confusion
    shown = np.arange(len(classes))
    title = "images of each class, by answer"
    if len(classes) > MAX_CLASSES_DRAWN:
        wrong = confusion - np.diag(confusion.diagonal())
        mistakes = wrong.sum(axis=0) + wrong.sum(axis=1)
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CONFUSED])
        title = f"the {MOST_CONFUSED} most confused of {len(classes):,} classes"
    counts = confusion[np.ix_(shown, shown)]
    shares = counts / np.maximum(confusion[shown].sum(axis=1, keepdims=True), 1)
    names = [shorten(classes[index], 24) for index in shown]

    side = 3 + 0.3 * len(shown)
    figure = new_figure(side + 1.5, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the class", shrink=0.8)
    axes.set(title=title, xlabel="answer", ylabel="class")
    axes.set_xticks(range(len(shown)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    for row, column in zip(*counts.nonzero(), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{counts[row, column]}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    figure.savefig(file, format="png")


def draw_mistakes(predictions: Predictions, images: LabeledImages, file: BinaryIO) -> None:
    """Draw the images whose wrong answers are the most probable, as a PNG file."""
    wrong = np.flatnonzero(~predictions.correct)
    certain = predictions.probabilities[wrong, 0]
    worst = wrong[np.argsort(-certain, kind="stable")][:MISTAKES_DRAWN]
    columns = 6
    rows = max(1, -(-len(worst) // columns))
    figure = new_figure(2 * columns, 0.6 + 2.5 * rows)
    figure.suptitle(
        f"{len(wrong):,} of {len(predictions.labels):,} answers are wrong: "
        "those that the network was most sure of"
    )
    all_axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in all_axes:
        axes.axis("off")
    for axes, index in zip(all_axes, worst, strict=False):
        image = images[int(index)][0]
        image.thumbnail((256, 256))
        axes.imshow(image)
        label, answer = (
            shorten(images.classes[found], 22)
            for found in (predictions.labels[index], predictions.classes[index, 0])
        )
        probability = predictions.probabilities[index, 0]
        name = shorten(Path(images.name(int(index))).name, 26)
        title = f"{label}\n→ {answer} {probability:.0%}\n{name}"
        axes.set_title(title, fontsize=7, parse_math=False)
    figure.savefig(file, format="png")


def shorten(text: str, length: int) -> str:
    """Return at most so many characters of a text, printable ones."""
    text = escape(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"

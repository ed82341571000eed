"""What a network says of the images of a data set, and the figures that judge it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.lib.command import ImageError
from examples.lib.distributed import RANK, WORLD_SIZE, gather


@dataclass(frozen=True)
class Predictions:
    """The most likely classes of images, of which one row each.

    Attributes:
        labels: the right class of each image, an index (N,).
        classes: its most likely classes, the best first: indices (N, 5), or fewer in all.
        probabilities: of these classes (N, 5), from 0 to 1.
        losses: the cross-entropy of each image (N,).
        num_classes: how many classes there are.
    """

    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray
    losses: np.ndarray
    num_classes: int

    @property
    def correct(self) -> np.ndarray:
        """Whether the most likely class is the right one (N,)."""
        right: np.ndarray = self.classes[:, 0] == self.labels
        return right

    @property
    def top1(self) -> float:
        """The accuracy in percent."""
        return 100 * float(self.correct.mean())

    @property
    def top5(self) -> float:
        """The percentage of images whose class is among the five most likely."""
        return 100 * float((self.classes == self.labels[:, None]).any(axis=1).mean())

    @property
    def loss(self) -> float:
        """The mean cross-entropy."""
        return float(self.losses.mean())

    @property
    def metrics(self) -> dict[str, float]:
        """Columns of a table."""
        return {
            "val_loss": self.loss,
            "val_top1": self.top1,
            "val_top5": self.top5,
            "val_class_mean": self.class_mean,
        }

    @property
    def confusion(self) -> np.ndarray:
        """The number of images of each class (row) that are taken for each class (column)."""
        size = self.num_classes
        pairs = self.labels * size + self.classes[:, 0]
        return np.bincount(pairs, minlength=size * size).reshape(size, size)

    @property
    def class_mean(self) -> float:
        """The mean over the classes of their accuracy in percent, of those that have images."""
        images = np.bincount(self.labels, minlength=self.num_classes)
        right = np.bincount(self.labels[self.correct], minlength=self.num_classes)
        return 100 * float((right[images > 0] / images[images > 0]).mean())


def classify(
    logits_of: Callable[[np.ndarray], np.ndarray], loader: DataLoader[Any], num_classes: int
) -> Predictions:
    """Return the predictions for all images, those of all processes, in the order of the data set.

    Args:
        logits_of: a function from pixels, uint8 (N, 3, H, W), to logits, float32 (N, num_classes).
        loader: yields pixels and labels: of rank r, the images r, r + WORLD_SIZE, and so on.
        num_classes: the number of logits of an image.
    """
    rows: list[tuple[np.ndarray, ...]] = []
    with progress_bar(loader, "validation") as bar:
        for pixels, labels in sound_batches(bar):
            logits = torch.from_numpy(logits_of(pixels.numpy()))
            best = logits.topk(min(5, num_classes)).indices
            probabilities = logits.softmax(dim=1).gather(1, best)
            losses = F.cross_entropy(logits, labels, reduction="none")
            tensors = (labels, best, probabilities, losses)
            rows += zip(*(tensor.numpy() for tensor in tensors), strict=True)

    labels_of_all, classes, probabilities_of_all, losses_of_all = map(
        np.array, zip(*gather(rows), strict=True)
    )
    return Predictions(
        labels=labels_of_all,
        classes=classes,
        probabilities=probabilities_of_all,
        losses=losses_of_all,
        num_classes=num_classes,
    )


def sound_batches(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images, uint8 (N, 3, H, W), and labels (N,).

    Raises:
        ImageError: an image cannot be read.
    """
    for batch in batches:
        if isinstance(batch, ImageError):
            raise batch
        yield batch


def progress_bar(loader: DataLoader[Any], title: str) -> "tqdm[Any]":
    """Return the batches with a progress bar, which rank 0 shows on a terminal."""
    return tqdm(
        loader,
        title,
        unit=" images",
        unit_scale=(loader.batch_size or 1) * WORLD_SIZE,
        leave=False,
        disable=True if RANK > 0 else None,  # None: disabled unless on a terminal
    )


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy, in percent, by Wilson's score.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927).
    """
    z = 1.96
    center = (right + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * (right * (count - right) / count + z**2 / 4) ** 0.5
    return 100 * (center - half), 100 * (center + half)

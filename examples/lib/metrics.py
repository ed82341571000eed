"""The accuracy and the loss of a network over the batches of a data set."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.lib.command import ImageError
from examples.lib.distributed import RANK, WORLD_SIZE, mean_over_processes


def accuracy_and_loss(
    logits_of: Callable[[np.ndarray], np.ndarray], loader: DataLoader[Any]
) -> dict[str, float]:
    """Return the mean loss, and the top-1 and top-5 accuracy in percent.

    With several processes, the results are over the images of all of them.

    Args:
        logits_of: a function from pixels, uint8 (N, 3, H, W), to logits, float32 (N, num_classes).
        loader: yields pixels and labels.
    """
    loss_sum, top1, top5 = torch.zeros(3)
    seen = 0

    with progress_bar(loader, "validation") as bar:
        for pixels, labels in sound_batches(bar):
            logits = torch.from_numpy(logits_of(pixels.numpy()))
            predictions = logits.topk(min(5, logits.shape[1])).indices  # (N, 5 or fewer)
            hits = predictions == labels[:, None]
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            top1 += hits[:, 0].sum()
            top5 += hits.sum()
            seen += len(labels)

    return {
        "val_loss": mean_over_processes(loss_sum, seen),
        "val_top1": 100 * mean_over_processes(top1, seen),
        "val_top5": 100 * mean_over_processes(top5, seen),
    }


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


def describe_accuracy(row: dict[str, float], num_classes: int, digits: int) -> str:
    """Return the validation accuracies: of five classes or fewer, only the top-1."""
    top1 = f"top-1 {row['val_top1']:.{digits}f}%"
    if num_classes <= 5:
        return top1
    return f"{top1}, top-5 {row['val_top5']:.{digits}f}%"

"""The accuracy and the loss of a network over the batches of a data set."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.command import ImageError
from examples.device import autocast
from examples.distributed import RANK, WORLD_SIZE, mean_over_processes
from examples.engines import Network
from examples.images import normalize


def as_classifier(network: nn.Module, device: torch.device, precision: str) -> Network:
    """Switch the network to evaluation mode. Return it as a function of pixels.

    The function maps uint8 (N, 3, H, W) to logits, float32 (N, num_classes).
    """
    network.eval()

    def classify(images: Tensor) -> Tensor:
        with autocast(device, precision):
            logits: Tensor = network(normalize(images.to(memory_format=torch.channels_last)))
        return logits.float()

    return classify


@torch.no_grad()
def accuracy_and_loss(
    classify: Network, loader: DataLoader[Any], device: torch.device
) -> dict[str, float]:
    """Return the mean loss, and the top-1 and top-5 accuracy in percent.

    With several processes, the results are over the images of all of them.

    Args:
        classify: a function from pixels, uint8 (N, 3, H, W), to logits, float32 (N, num_classes).
        loader: yields pixels and labels.
        device: where `classify` takes the pixels.
    """
    loss_sum, top1, top5 = torch.zeros(3, device=device)
    seen = 0

    with progress_bar(loader, "validation") as bar:
        for images, labels in batches_on(device, bar):
            logits = classify(images)
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


def batches_on(device: torch.device, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images, uint8 (N, 3, H, W), and labels (N,) on the device.

    Raises:
        ImageError: an image cannot be read.
    """
    for batch in batches:
        if isinstance(batch, ImageError):
            raise batch
        images, labels = batch
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def progress_bar(loader: DataLoader[Any], title: str) -> tqdm:
    """Return the batches with a progress bar, which the first process shows on a terminal."""
    return tqdm(
        loader,
        title,
        unit=" images",
        unit_scale=loader.batch_size * WORLD_SIZE,
        leave=False,
        disable=True if RANK > 0 else None,  # None: disabled unless on a terminal
    )


def describe_accuracy(row: dict[str, float], num_classes: int, digits: int) -> str:
    """Return the validation accuracies: of five classes or fewer, only the top-1."""
    top1 = f"top-1 {row['val_top1']:.{digits}f}%"
    if num_classes <= 5:
        return top1
    return f"{top1}, top-5 {row['val_top5']:.{digits}f}%"

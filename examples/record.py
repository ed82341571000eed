"""What a training run leaves behind; no file is ever half written, however the run is killed."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any, Callable

import torch
from lightning.pytorch.plugins import TorchCheckpointIO
from matplotlib.figure import Figure
from torch import nn


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints; its own are copied from another disk where /tmp is on one."""

    def save_checkpoint(self, checkpoint: Any, path: Any, storage_options: Any = None) -> None:
        replace(Path(path), lambda file: torch.save(checkpoint, file))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, then move it there."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save's, where the disk is full
        if temporary.exists():
            temporary.unlink()
        raise OSError(f"cannot write {path}: {error}") from error


def save_metrics(history: list[dict[str, float]], path: Path) -> None:
    """Write a row for each epoch."""

    def write(file: Path) -> None:
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, history[0])
            writer.writeheader()
            writer.writerows(history)

    replace(path, write)


def save_curves(history: list[dict[str, float]], name: str, path: Path) -> None:
    """Draw loss and accuracy over the epochs as a PNG."""
    epochs = [row["epoch"] for row in history]
    best = max(history, key=lambda row: row["val_top1"])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(f"{name}: best top-1 {best['val_top1']:.1f} %, epoch {best['epoch']}")
    for axes, metric, label in zip(figure.subplots(1, 2), ("loss", "top1"), ("loss", "top-1 (%)")):
        for split, images in ("train", "train (augmented)"), ("val", "val"):
            axes.plot(epochs, [row[f"{split}_{metric}"] for row in history], ".-", label=images)
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    replace(path, lambda file: figure.savefig(file, format="png"))


def save_model(
    network: nn.Module, name: str, classes: list[str], image_size: int, path: Path
) -> None:
    """Write the file that `examples.weights.load_file` reads."""
    weights = {
        key: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in network.state_dict().items()
    }
    about = {"model": name, "classes": classes, "image_size": image_size}
    replace(path, lambda file: torch.save({**about, "state_dict": weights}, file))

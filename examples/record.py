"""What a training run leaves behind; no file is ever half written, however the run is killed."""

from __future__ import annotations

import csv
import os
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Callable

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.command_line import CommandError
from examples.weights import read

METRICS = ("train_loss", "train_top1", "val_loss", "val_top1", "val_top5")
# The options that a resumed run has to repeat.
RECIPE = ("epochs", "batch_size", "lr", "label_smoothing", "image_size", "precision", "seed")


class Record(Callback):
    """Leaves metrics, curves, checkpoints and the best weights in `args.out` after each epoch.

    Raises:
        CommandError: the loss became NaN or infinite.
    """

    def __init__(self, args: Namespace, classes: list[str]) -> None:
        self.args, self.classes = args, classes
        self.history: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self.losses: list[Tensor] = []
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.losses.append(outputs["loss"])
        images = len(self.losses) * self.args.batch_size
        self.images_per_second = images / (time.perf_counter() - self.start)
        module.log("images/s", self.images_per_second, prog_bar=True)
        if index % 50 == 0:  # seldom, as a GPU has to be waited for
            self.check_losses(trainer)

    def check_losses(self, trainer: Trainer) -> None:
        """Refuse an epoch's losses, one a step, unless they are finite in all processes."""
        losses: Any = trainer.strategy.reduce(torch.stack(self.losses), reduce_op="mean")
        for index in (~losses.isfinite()).nonzero()[:1].flatten().tolist():
            step = int(trainer.num_training_batches) * len(self.history) + index + 1
            raise CommandError(
                f"the loss became {losses[index]:g} at step {step}, in epoch "
                f"{len(self.history) + 1}: try a smaller --lr; earlier checkpoints are kept"
            )

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.check_losses(trainer)
        out, epoch = self.args.out, len(self.history) + 1
        best = max((row["val_top1"] for row in self.history), default=-1.0)
        row = {name: trainer.callback_metrics[name].item() for name in METRICS}
        row = {"epoch": epoch, **row, "images_per_second": self.images_per_second}
        self.history.append(row)

        # The last checkpoint comes last: killed before it is there, the run repeats this epoch.
        if trainer.is_global_zero:
            save_metrics(self.history, out / "metrics.csv")
            save_curves(self.history, self.args.model, out / "curves.png")
        if row["val_top1"] > best:
            if trainer.is_global_zero:
                save_model(module.network, self.args, self.classes, out / "model.pt")
            trainer.save_checkpoint(out / "best.ckpt")
        trainer.save_checkpoint(out / "last.ckpt")
        if trainer.is_global_zero:
            print(
                f"epoch {epoch}/{self.args.epochs}: "
                f"loss {row['train_loss']:.3f}, top-1 {row['train_top1']:.1f} %; "
                f"val loss {row['val_loss']:.3f}, top-1 {row['val_top1']:.1f} %; "
                f"{row['images_per_second']:.0f} images/s",
                flush=True,
            )

    def on_save_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        options = {name: getattr(self.args, name) for name in RECIPE}
        checkpoint.update(model=self.args.model, classes=self.classes, options=options)
        checkpoint.update(history=self.history)

    def on_load_checkpoint(self, trainer: Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"]


def find_checkpoint(args: Namespace, classes: list[str]) -> Path | None:
    """Return the checkpoint to go on from, if there is one in `args.out`, a folder that is made.

    Raises:
        CommandError: it is not to be gone on from, or of another run; or there can be no folder.
        WeightsError: it cannot be read.
    """
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make the folder {args.out}: {error.strerror}") from error
    checkpoint: Path = args.out / "last.ckpt"
    if not checkpoint.exists():  # nor does a run have one that was killed in its first epoch
        return None
    if not args.resume:
        raise CommandError(f"{args.out} holds a run: add --resume, or name another with --out")
    saved = read(checkpoint)
    if not isinstance(saved, dict) or not {"model", "options", "history"} <= saved.keys():
        raise CommandError(f"{checkpoint} was not written by this command")
    if saved["model"] != args.model:
        raise CommandError(f"{checkpoint} holds {saved['model']}, not {args.model}")
    if saved["classes"] != classes:
        theirs, ours = shorten(saved["classes"]), shorten(classes)
        raise CommandError(f"{checkpoint} is for the classes {theirs}, not {ours}")
    for name, value in saved["options"].items():
        if value != getattr(args, name):
            option, given = name.replace("_", "-"), getattr(args, name)
            raise CommandError(f"{args.out} holds a run with --{option} {value}, not {given}")
    if len(saved["history"]) >= args.epochs:
        raise CommandError(f"{args.out} has its {len(saved['history'])} epochs: nothing is left")
    return checkpoint


def shorten(classes: list[str]) -> str:
    """Return the first classes and how many there are."""
    return f"{', '.join(classes[:3])}{', …' * (len(classes) > 3)} ({len(classes)})"


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


def save_model(network: nn.Module, args: Namespace, classes: list[str], path: Path) -> None:
    """Write the file that `examples.weights.load_file` reads."""
    weights = {
        key: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in network.state_dict().items()
    }
    about = {"model": args.model, "classes": classes, "image_size": args.image_size}
    replace(path, lambda file: torch.save({**about, "state_dict": weights}, file))

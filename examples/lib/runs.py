"""The folder of a training run: its weights, its checkpoint, its table and its curves."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import torch

from examples.lib.checkpoints import read_checkpoint
from examples.lib.command import UserError, require
from examples.lib.distributed import RANK, note_once
from examples.lib.metrics import Predictions
from examples.lib.networks import Network
from examples.lib.results import new_figure, write_atomically


@dataclass
class State:
    """What changes during a run, and what --resume restores.

    Attributes:
        network: the network whose weights are saved.
        optimizer: that of the weights that are trained.
        scaler: of the loss, for float16.
        rows: of metrics.csv, one for each finished epoch.
        best: the predictions for the validation images after the best of these epochs.
        counted_from: the first epoch whose weights may be in model.pt. A run that was continued
            without that file has lost the best of the epochs before.
    """

    network: Network
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    rows: list[dict[str, float]] = field(default_factory=list)
    best: Predictions | None = None
    counted_from: int = 1


def best_epoch(state: State) -> int:
    """Return the epoch with the highest top-1 accuracy, of several that with the lowest loss."""
    rows = state.rows[state.counted_from - 1 :]
    best = min(rows, key=lambda row: (-row["val_top1"], row["val_loss"]))
    return int(best["epoch"])


# Writing


def save_epoch(
    out: Path, state: State, description: dict[str, Any], metadata: dict[str, Any]
) -> None:
    """Write what the last epoch has changed: model.pt if it is the best, and all other files.

    The weights come first: a run that is killed in between loses no best epoch.

    Args:
        out: the folder of the run.
        state: after the epoch.
        description: of `save_checkpoint`, with the options under "config".
        metadata: what a file of weights says beside them, for `load_weights`.

    Raises:
        UserError: model.pt or last.ckpt cannot be written.
    """
    if best_epoch(state) == len(state.rows):
        weights = {
            name: tensor.cpu().contiguous()  # not channels-last
            for name, tensor in state.network.state_dict().items()
        }
        best = {"state_dict": weights, **metadata}
        write_atomically(out / "model.pt", partial(torch.save, best))
    save_checkpoint(out, state, {**description, **metadata})

    import pandas as pd

    table = pd.DataFrame(state.rows)
    network, size = description["config"]["model"], metadata["image_size"]
    title = f"{network} on {len(metadata['classes'])} classes, {size} × {size}"
    for name, write in (
        ("metrics.csv", partial(table.to_csv, index=False)),
        ("curves.png", partial(draw_curves, table, title)),
    ):
        try:
            write_atomically(out / name, write)
        except Exception as error:  # open in a spreadsheet, or a matplotlib that needs LaTeX
            reason = " ".join(str(error).split()) or type(error).__name__
            note_once(f"{name} is not up to date, and is tried again: {reason}")


def save_checkpoint(out: Path, state: State, description: dict[str, Any]) -> None:
    """Write last.ckpt, from which --resume continues.

    Args:
        out: the folder of the run.
        state: what is restored.
        description: what must be the same, or must be known, to continue. --weights reads a part.

    Raises:
        UserError: this is not possible.
    """
    checkpoint = {
        "network": state.network.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "rows": state.rows,
        "best": None if state.best is None else storable(vars(state.best)),
        "counted_from": state.counted_from,
        **description,
    }
    write_atomically(out / "last.ckpt", partial(torch.save, checkpoint))


def storable(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as torch.load reads them without running code: no paths, no NumPy arrays."""
    stored = dict(values)
    for name, value in values.items():
        if isinstance(value, Path):
            stored[name] = str(value)
        elif isinstance(value, np.ndarray):
            stored[name] = torch.from_numpy(value)
    return stored


def draw_curves(table: Any, title: str, file: BinaryIO) -> None:
    """Plot the loss and the top-1 accuracy over the epochs, as a PNG file."""
    figure = new_figure(10, 4)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for axes, metric, label in (
        (left, "loss", "cross-entropy loss"),
        (right, "top1", "top-1 accuracy (%)"),
    ):
        axes.plot(table["epoch"], table[f"train_{metric}"], ".-", label="training")
        axes.plot(table["epoch"], table[f"val_{metric}"], ".-", label="validation")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(file, format="png")


# Reading


def lock(out: Path) -> filelock.BaseFileLock:
    """Create the folder `out`, and keep other runs out of it while this process lives.

    Raises:
        UserError: another run writes to it, or it cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".lock").touch()  # raises the usual error where nothing can be written
        held = filelock.FileLock(out / ".lock")
        held.acquire(timeout=0)
        return held
    except filelock.Timeout as error:
        raise UserError(f"another run is writing to {out}: choose another --out") from error
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from error


def holds_run(out: Path) -> bool:
    """Return whether the folder `out` holds a run with at least one finished epoch.

    Raises:
        UserError: another run writes to it, or its checkpoint was deleted, but not its weights.
    """
    if RANK == 0 and (out / ".lock").exists():
        lock(out).release()
    path = out / "last.ckpt"
    if path.exists():
        return bool(read_checkpoint(path).get("rows") != [])
    require(
        not (out / "model.pt").exists(),
        f"{out} holds the weights of another run, model.pt: choose another --out",
    )
    return False


def load_checkpoint(out: Path) -> dict[str, Any]:
    """Return what last.ckpt in the folder `out` holds.

    Raises:
        UserError: there is none, or it is not that of a run.
    """
    path = out / "last.ckpt"
    require(path.exists(), f"no run to resume in {out}: it has no last.ckpt")
    checkpoint: dict[str, Any] = read_checkpoint(path)
    require("config" in checkpoint, f"{path} is not a checkpoint of examples.train")
    return checkpoint


def load_state(state: State, checkpoint: dict[str, Any], out: Path) -> None:
    """Restore what `save_checkpoint` wrote. The network has its weights already.

    Without the weights of the best epoch in the folder `out`, those of the last one count, and
    `state.best` is None.
    """
    # Not the saved groups: another device may have another value of `fused`.
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({**checkpoint["optimizer"], "param_groups": groups})
    state.scaler.load_state_dict(checkpoint["scaler"])
    state.rows = checkpoint["rows"]
    state.counted_from = checkpoint["counted_from"]
    if not state.rows:
        return
    if (out / "model.pt").exists():
        best: Any = {name: np.asarray(values) for name, values in checkpoint["best"].items()}
        state.best = Predictions(**{**best, "num_classes": int(best["num_classes"])})
    else:
        state.counted_from = len(state.rows)
        note_once(
            f"{out} has no model.pt: the best of the epochs from {len(state.rows)} on is kept"
        )

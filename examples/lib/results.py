"""What a command leaves in a folder: files that are never half written, and figures."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from examples.lib.command import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a temporary file, then rename it to `path`, so that `path` is never half written.

    Create its folder if there is none.

    Raises:
        UserError: this is not possible.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                write(file)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size, in inches."""
    # matplotlib, imported here because it takes a second, refuses a notebook's MPLBACKEND where
    # that backend is not installed. Nothing is shown here: no backend is needed.
    os.environ.pop("MPLBACKEND", None)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")

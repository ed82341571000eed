"""What the commands in this folder share: the types of their options, and errors of one line."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from typing import Any, Iterator

import click
import torch

from examples.images import ImageError


class Command(click.Command):
    """A command that says in one line what is wrong with an argument, with no usage above it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            raise click.ClickException(error.format_message()) from error


class Device(click.ParamType[torch.device]):
    """Any device that PyTorch finds."""

    name = "device"

    def convert(self, value: Any, param: Any, ctx: Any) -> torch.device:
        try:
            return torch.empty(1, device=value).device
        except (AssertionError, ImportError, RuntimeError) as error:
            self.fail(str(error).splitlines()[0], param, ctx)


class FiniteRange(click.FloatRange):
    """A range of numbers without NaN and infinity."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = float(super().convert(value, param, ctx))
        return number if math.isfinite(number) else self.fail(f"{value} is not finite", param, ctx)


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Say in one line, and in one of several processes, what stops them all.

    That is the first process, or the one that alone has an image or a reader it cannot go on with.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # what it is about to do
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    try:
        yield
    except (KeyboardInterrupt, OSError, RuntimeError, click.ClickException) as error:
        line = str(error)
        lone, reader = isinstance(error, ImageError), line.startswith("DataLoader worker (pid")
        if rank and not (torch.distributed.is_initialized() and (lone or reader)):
            sys.exit(1)
        if reader:
            line = "a process that reads images was killed, by hand or for lack of (shared) memory"
        elif "by peer" in line:  # gloo's words for a process that is gone
            processes = getattr(click.get_current_context().obj, "procs", [])  # none of torchrun's
            while processes and all(process.poll() is None for process in processes):
                time.sleep(0.1)
            if all((process.poll() or 0) >= 0 for process in processes):
                sys.exit(1)  # it has said why it stopped
            line = "another process of this run was killed"
        elif not isinstance(error, OSError) and "PytorchStreamWriter" not in line:  # a full disk
            raise
        raise click.ClickException(line) from error

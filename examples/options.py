"""What the commands in this folder share: the types of their options, and errors of one line."""

from __future__ import annotations

import contextlib
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
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """Say in one line, and in one of several processes, what stops them all.

    That is the first process, or the one that alone has an image or a process it cannot go on with.
    """
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
    try:
        yield
    except KeyboardInterrupt as error:
        if rank:
            sys.exit(1)
        message = "interrupted: --resume goes on after the last finished epoch"
        raise click.ClickException(message) from error
    except ImageError:
        if rank == 0 or torch.distributed.is_initialized():  # each has images of its own
            raise
        sys.exit(1)
    except click.ClickException:
        if rank == 0:
            raise
        sys.exit(1)
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker (pid"):
            reason = "was killed, by hand or for lack of (shared) memory"
            raise click.ClickException(f"a process that reads images {reason}") from error
        if "by peer" not in str(error):  # gloo's words for a process that is gone
            raise
        launcher = click.get_current_context().obj
        processes = getattr(launcher, "procs", [])  # torchrun has its own, and says what they met
        while processes and all(process.poll() is None for process in processes):
            time.sleep(0.1)
        if any((process.poll() or 0) < 0 for process in processes):
            raise click.ClickException("another process of this run was killed") from error
        sys.exit(1)  # the other has said why it stopped

"""What the commands in this folder share: the types of their options, and errors of one line."""

from __future__ import annotations

import contextlib
import math
import sys
from typing import Any, Iterator

import click
import torch


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
def said_once(rank: int) -> Iterator[None]:
    """Have what goes wrong in all processes alike said by the first one alone."""
    try:
        yield
    except (click.ClickException, OSError) as error:
        if rank:
            sys.exit(1)
        raise click.ClickException(str(error)) from error


@contextlib.contextmanager
def processes_that_die(strategy: Any) -> Iterator[None]:
    """Say which process was killed, of those that read images or train beside this one."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            reason = "was killed, by hand or for lack of (shared) memory"
            raise click.ClickException(f"a process that reads images {reason}") from error
        processes = getattr(strategy.launcher, "procs", [])  # none under torchrun, which says it
        if any(process.wait() < 0 for process in processes):
            raise click.ClickException("another process of this run was killed") from error
        if torch.distributed.is_initialized():
            sys.exit(1)  # another process has said why it stopped
        raise

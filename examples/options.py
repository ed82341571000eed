"""What the commands in this folder share: any device, and errors of one line."""

import logging
import os
import sys
import time
from typing import Any

import click
import torch

from examples.images import ImageError


def device(name: str) -> torch.device:
    """Return any device that PyTorch finds."""
    try:
        return torch.empty(1, device=name).device
    except (AssertionError, ImportError, RuntimeError) as error:
        raise click.BadParameter(str(error).splitlines()[0]) from error


class Command(click.Command):
    """A command that says in one line, and in one of several processes, what stops it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:  # with no usage above it
            raise click.ClickException(error.format_message()) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; of several processes the first speaks, or the one that knows why."""
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # what it is about to do
        rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click's to handle
            raise
        except (KeyboardInterrupt, OSError, RuntimeError, click.ClickException) as error:
            line = str(error)
            reader = line.startswith("DataLoader worker (pid")  # it was killed
            full_disk = "PytorchStreamWriter" in line
            lone = reader or isinstance(error, ImageError)
            if rank and not (lone and torch.distributed.is_initialized()):
                sys.exit(1)
            if "by peer" in line:  # gloo's words for a process that is gone
                processes = getattr(ctx.obj, "procs", [])  # none of torchrun's
                while processes and all(process.poll() is None for process in processes):
                    time.sleep(0.1)
                if all((process.poll() or 0) >= 0 for process in processes):
                    sys.exit(1)  # it has said why it stopped
                line = "another process of this run was killed"
            elif not (reader or full_disk or isinstance(error, OSError)):
                raise
            raise click.ClickException(line) from error

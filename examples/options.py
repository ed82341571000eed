"""What the commands in this folder share: any device, and errors of one line."""

import logging
import os
import sys
import time
from typing import Any

import click
import torch

from examples.images import ImageError


class Device(click.ParamType[torch.device]):
    """Any device that PyTorch finds."""

    name = "device"

    def convert(self, value: Any, param: Any, ctx: Any) -> torch.device:
        try:
            return torch.empty(1, device=value).device
        except (AssertionError, ImportError, RuntimeError) as error:
            self.fail(str(error).splitlines()[0], param, ctx)


class Command(click.Command):
    """A command that says in one line, and in one of several processes, what stops it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:  # with no usage above it
            raise click.ClickException(error.format_message()) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Of several processes the first one speaks, or the one that alone has an image or a reader
        it cannot go on with.
        """
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # what it is about to do
        rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0)))
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click's to handle
            raise
        except (KeyboardInterrupt, OSError, RuntimeError, click.ClickException) as error:
            line = str(error)
            reader = line.startswith("DataLoader worker (pid")
            lone = reader or isinstance(error, ImageError)
            system = isinstance(error, OSError) or "PytorchStreamWriter" in line  # a full disk
            if rank and not (lone and torch.distributed.is_initialized()):
                sys.exit(1)
            if reader:
                line = "a process that reads images was killed, by hand or for lack of "
                line += "(shared) memory"
            elif "by peer" in line:  # gloo's words for a process that is gone
                processes = getattr(ctx.obj, "procs", [])  # none of torchrun's
                while processes and all(process.poll() is None for process in processes):
                    time.sleep(0.1)
                if all((process.poll() or 0) >= 0 for process in processes):
                    sys.exit(1)  # it has said why it stopped
                line = "another process of this run was killed"
            elif not system:
                raise
            raise click.ClickException(line) from error

"""What the commands in this folder share: how they refuse an argument, and where they run."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
from typing import NoReturn

import torch


class CommandError(Exception):
    """What keeps a command from starting or going on; the message is one line that says why."""


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, with no usage above it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive_int(text: str) -> int:
    """Return the whole number that `text` holds.

    Raises:
        argparse.ArgumentTypeError: it is not a whole number of 1 or more.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def device(text: str) -> torch.device:
    """Return the device that `text` names.

    Raises:
        argparse.ArgumentTypeError: it is neither cpu nor cuda, or there is no CUDA device.
    """
    if text not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("no CUDA device is available here, use cpu")
    return torch.device(text)


def default_device() -> torch.device:
    """Return CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def whole_number(text: str) -> int:
    """Return the whole number that `text` holds.

    Raises:
        argparse.ArgumentTypeError: it is not a whole number of 0 or more.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive_float(text: str) -> float:
    """Return the number that `text` holds.

    Raises:
        argparse.ArgumentTypeError: it is not a finite number above 0.
    """
    with contextlib.suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def fraction(text: str) -> float:
    """Return the number that `text` holds.

    Raises:
        argparse.ArgumentTypeError: it is not at least 0 and below 1.
    """
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to below 1")


def reuse_memory() -> None:
    """Have freed memory used again by this process, where its C library is glibc.

    By default glibc returns large tensors to the system, which clears each page of the next one.
    """
    trim_threshold, mmap_max = -1, -4  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)

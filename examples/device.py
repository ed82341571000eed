"""The device that a command runs on."""

import sys

import torch


def find_device(name: str) -> torch.device:
    """Return the device called `name`; stop with one line where PyTorch finds no such device."""
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"error: --device {name}: {reason}")

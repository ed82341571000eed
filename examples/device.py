"""The device that a command runs on."""

import sys

import torch


def find_device(name: str) -> torch.device:
    """Return the PyTorch device called `name`, such as "cpu" or "cuda:1".

    Exit with a one-line error message if PyTorch cannot use it.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"error: --device {name}: {reason}")

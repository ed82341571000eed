"""The device that a command runs on, and the precision that it computes in."""

import torch

from examples.command import UserError

DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def find_device(name: str) -> torch.device:
    """Return the PyTorch device called `name`, such as "cpu" or "cuda:1".

    Raises:
        UserError: PyTorch cannot use it.
    """
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: {reason}") from error


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a network computes in this precision.

    Its convolutions and matrix products are in "bfloat16" or "float16", or all of it in "float32".
    """
    dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

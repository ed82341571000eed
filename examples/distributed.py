"""Several training processes, as torchrun starts them. Without torchrun, there is one process."""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from examples.command import UserError, print_result
from examples.device import find_device

# torchrun sets these variables in each process that it starts.
RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # on this machine
LOCAL_WORLD_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def join_processes(device_name: str) -> torch.device:
    """Connect this process to the others, if there are any. Return its device.

    On GPUs, each process of a machine has one of its own.

    Raises:
        UserError: there are others, but nothing says how to reach them.
    """
    if WORLD_SIZE == 1:
        return find_device(device_name)

    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment has WORLD_SIZE={WORLD_SIZE} without {', '.join(missing)}: "
            "start several processes with torchrun, or unset WORLD_SIZE for one process"
        )
    if not device_name.startswith("cuda"):
        device = find_device(device_name)
        dist.init_process_group("gloo")
        return device

    device = find_device(f"cuda:{LOCAL_RANK}")
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Let one process of each machine run this block before the others, which find its downloads.

    If the block raises an error in that process, the others still run it.
    """
    if WORLD_SIZE > 1 and LOCAL_RANK > 0:
        dist.barrier()
    try:
        yield
    finally:
        if WORLD_SIZE > 1 and LOCAL_RANK == 0:
            dist.barrier()


def copy_running_statistics(network: nn.Module) -> None:
    """Give all processes the first one's running statistics of batch norm."""
    if WORLD_SIZE > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def mean_over_processes(total: Tensor, count: int) -> float:
    """Return total / count, where both are summed over all processes."""
    sums = torch.stack([total.float(), torch.tensor(float(count), device=total.device)])
    if WORLD_SIZE > 1:
        dist.all_reduce(sums)
    return (sums[0] / sums[1]).item()


def print_once(line: str) -> None:
    """Print a line, in the first process only."""
    if RANK == 0:
        print_result(line)

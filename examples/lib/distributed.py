"""Several training processes, as torchrun starts them. Without torchrun, there is one process."""

import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from examples.lib.command import UserError, escape, print_result

# torchrun sets these variables in each process that it starts.
RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # on this machine
LOCAL_WORLD_SIZE = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
TORCHRUN_RESTARTS = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))

# How long a process waits for another, which may be lost. It is longer than a download takes.
TIMEOUT = timedelta(minutes=10)


def find_device(name: str | None) -> torch.device:
    """Return the PyTorch device called `name`, such as "cpu" or "cuda:1".

    None: the GPU, if there is one, or the CPU. Of several processes, each has a GPU of its own.

    Raises:
        UserError: PyTorch cannot use it.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if WORLD_SIZE > 1 and name.startswith("cuda"):
        name = f"cuda:{LOCAL_RANK}"
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: {reason}") from error


def join_processes(device: torch.device) -> None:
    """Connect this process, which computes on the device, to the others, if there are any.

    Raises:
        UserError: there are others, but nothing says how to reach them.
    """
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and "WORLD_SIZE" not in os.environ:
        raise UserError(
            f"srun has started {tasks} tasks that know nothing of each other: let it start one "
            "torchrun on each machine"
        )
    if WORLD_SIZE == 1:
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UserError(
            f"the environment has WORLD_SIZE={WORLD_SIZE} without {', '.join(missing)}: "
            "start several processes with torchrun, or unset WORLD_SIZE for one process"
        )
    # torchrun keeps its store when it restarts the processes. In a part of their own, they do not
    # find the addresses of those that have ended (see findings/).
    store, _, _ = next(rendezvous("env://"))
    options: dict[str, Any] = {
        "backend": "gloo",
        "store": dist.PrefixStore(f"restart {TORCHRUN_RESTARTS}", store),  # type: ignore[attr-defined]
        "rank": RANK,
        "world_size": WORLD_SIZE,
        "timeout": TIMEOUT,
    }
    if device.type == "cuda":
        torch.cuda.set_device(device)
        options |= {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
    dist.init_process_group(**options)


def leave_processes() -> None:
    """Disconnect this process. Do not call this after an error: it would wait for the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Let local rank 0 run this block before the others, which find what it has downloaded.

    If the block raises an error there, the others still run it.
    """
    if WORLD_SIZE > 1 and LOCAL_RANK > 0:
        dist.barrier()
    try:
        yield
    finally:
        if WORLD_SIZE > 1 and LOCAL_RANK == 0:
            dist.barrier()


def broadcast_buffers(network: nn.Module) -> None:
    """Give all processes rank 0's buffers: the running statistics of batch norm."""
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
    """Print a line, in rank 0 only."""
    if RANK == 0:
        print_result(line)


def note_once(text: str) -> None:
    """Print a note on standard error, in rank 0 only."""
    if RANK == 0:
        print(escape(f"note: {text}"), file=sys.stderr)


def gather(items: list[Any]) -> list[Any]:
    """Return the items of all processes, in turns: one of each rank, then the next of each.

    Rank r has those with the numbers r, r + WORLD_SIZE, and so on.
    """
    if WORLD_SIZE == 1:
        return items
    lists: list[list[Any]] = [[] for _ in range(WORLD_SIZE)]
    dist.all_gather_object(lists, items)
    gathered = [None] * sum(map(len, lists))
    for rank, part in enumerate(lists):
        gathered[rank::WORLD_SIZE] = part
    return gathered

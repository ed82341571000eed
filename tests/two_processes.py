"""Run recipes of README.md for several processes in two, each with half of a batch.

    python -m tests.two_processes FOLDER HEADING ...

FOLDER/inputs holds weights, images and labels for each network; each recipe leaves its gradients in
a file FOLDER/NETWORK HEADING.
"""

from __future__ import annotations

import os
import socket
import sys

import torch
from torch.multiprocessing import start_processes

from tests.oracle import MODELS
from tests.readme import recipe


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(rank: int, port: int, folder: str, name: str, heading: str) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=f"{rank}"
    )
    weights, images, labels = torch.load(f"{folder}/inputs", weights_only=True)[name]
    # In evaluation mode: in training, each process would normalise by statistics of its own half
    # and drop by its own chance, which no single process can equal.
    names = {"torch": torch, "model": MODELS[name].from_state_dict(weights).eval()}
    names.update(images=images.chunk(2)[rank], labels=labels.chunk(2)[rank])
    exec(recipe(heading, name), names)
    gradients = {key: p.grad for key, p in names["model"].named_parameters()}
    if heading == "FSDP2":
        gradients = {key: gradient.full_tensor() for key, gradient in gradients.items()}
    if rank == 0:
        torch.save(gradients, f"{folder}/{name} {heading}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder, *headings = sys.argv[1:]
    torch.set_num_threads(1)  # threads do not survive a fork
    for name in MODELS:
        for heading in headings:
            arguments = (free_port(), folder, name, heading)
            start_processes(work, arguments, nprocs=2, start_method="fork")

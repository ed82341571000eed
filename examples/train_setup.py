"""What `examples.train` starts from: its options, the network, and what it refuses."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from examples.command_line import (
    ArgumentParser,
    CommandError,
    fraction,
    positive_float,
    positive_int,
    whole_number,
)
from examples.images import LabelledImages
from examples.record import shorten
from examples.weights import MODELS, load_file, load_official, official_weights

LEARNING_RATES = {"alexnet": 0.02, "resnet18": 0.1}  # for 256 images


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m examples.train",
        description="Train, fine-tune or evaluate a network on a folder of images. "
        "An image that cannot be decoded stops the run, which names it.",
    )
    add, default = parser.add_argument, "default: %(default)s"
    rates = ", ".join(f"{rate} for {name}" for name, rate in LEARNING_RATES.items())
    add("data", metavar="DATA", type=Path, help="folder with train/<class>/ and val/<class>/")
    add("--model", choices=list(MODELS), help="default: what --weights holds, else resnet18")
    start = parser.add_mutually_exclusive_group().add_argument
    new_head = "with a new head where the classes differ; default: from scratch"
    start("--pretrained", action="store_true", help=f"start from official weights, {new_head}")
    start("--weights", metavar="FILE", type=Path, help=f"start from those in FILE, {new_head}")
    only = parser.add_mutually_exclusive_group().add_argument
    only(
        "--evaluate", action="store_true", help="only print top-1 and top-5 on val/; default: train"
    )
    resume = "go on, with the same options, after the last finished epoch in --out; default: start"
    only("--resume", action="store_true", help=resume)
    left = "folder for metrics.csv, curves.png, last.ckpt, best.ckpt and model.pt, the best weights"
    add("--out", type=Path, default=Path("run"), help=f"{left}; {default}")
    add("--epochs", type=positive_int, default=90, help=default)
    batch = f"images in a step, shared by all processes; {default}"
    add("--batch-size", type=positive_int, default=64, help=batch)
    lr = f"learning rate for 256 images, scaled with the batch; default: {rates}"
    add("--lr", type=positive_float, help=lr)
    add("--label-smoothing", type=fraction, default=0.0, help=default)
    add("--image-size", type=positive_int, default=224, help=f"width and height; {default}")
    add("--precision", choices=["32", "bf16-mixed", "16-mixed"], default="32", help=default)
    workers = (
        "processes that read images, beside each that trains; default: cores to spare, up to 8"
    )
    add("--workers", type=whole_number, help=workers)
    add("--seed", type=whole_number, default=0, help=default)
    devices = (
        "processes that train, each on a GPU or a share of the cores; default: 1 or torchrun's"
    )
    add("--devices", type=positive_int, help=devices)
    add("--nodes", type=positive_int, help="machines; default: 1 or torchrun's")
    add("--compile", action="store_true", help="compile the network; default: no")
    return parser


def complete(args: Namespace) -> None:
    """Fill in the options that depend on the machine.

    Raises:
        CommandError: options do not fit each other or the machine.
    """
    torchrun, gpus = "TORCHELASTIC_RUN_ID" in os.environ, torch.cuda.device_count()
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else args.devices or 1
    nodes = int(os.environ["GROUP_WORLD_SIZE"]) if torchrun else args.nodes or 1
    processes = devices * nodes
    if (args.devices or devices, args.nodes or nodes) != (devices, nodes):
        raise CommandError(f"torchrun started {devices} processes on each of {nodes} machines")
    if nodes > 1 and not torchrun:
        raise CommandError(f"--nodes {nodes} needs torchrun to start it on each machine")
    if devices > gpus > 0:
        raise CommandError(f"--devices {devices} is more than the {gpus} GPUs of this machine")
    if args.precision == "16-mixed" and not gpus:
        raise CommandError("--precision 16-mixed needs a GPU: use bf16-mixed")
    if args.batch_size % processes:
        raise CommandError(
            f"--batch-size {args.batch_size} is no multiple of {processes} processes"
        )
    if args.evaluate and not (args.pretrained or args.weights):
        raise CommandError("--evaluate needs --pretrained or --weights FILE")
    args.devices, args.nodes, args.processes = devices, nodes, processes
    if args.workers is None:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        args.workers = max(0, min(8, cores // devices - (not gpus)))  # a CPU trains as well


def check_folders(args: Namespace, train: LabelledImages, val: LabelledImages) -> None:
    """Refuse folders of other classes or too few images.

    Raises:
        CommandError: they do not fit each other or the options.
    """
    if train.classes != val.classes:
        lone = ", ".join(sorted(set(train.classes) ^ set(val.classes))[:3])
        raise CommandError(f"of train/ and val/ in {args.data} only one has the class {lone}")
    if len(train) < args.batch_size and not args.evaluate:
        raise CommandError(
            f"--batch-size {args.batch_size} is more than train/'s {len(train)} images"
        )
    if len(val) < args.processes:
        raise CommandError(f"val/ has {len(val)} images, too few for {args.processes} processes")


def build_network(args: Namespace, classes: list[str]) -> Any:
    """Return the network to start from; its name and learning rate become the options'.

    Raises:
        CommandError: the weights are for other classes, or the images too small.
        WeightsError: there are no such weights.
    """
    if args.weights or args.pretrained:
        classifier = (
            load_file(args.weights, args.model)
            if args.weights
            else load_official(args.model or "resnet18")
        )
        network, known = classifier.model, classifier.classes
    else:
        network, known = MODELS[args.model or "resnet18"](num_classes=len(classes)), classes
    args.model = next(name for name, model in MODELS.items() if isinstance(network, model))
    args.lr = args.lr or LEARNING_RATES[args.model]
    # ImageNet's categories and bare numbers are not what the folders of classes are called.
    unnamed = [str(index) for index in range(len(classes))]
    if known in (official_weights(args.model).meta["categories"], unnamed):
        known = classes if len(known) == len(classes) else known
    if known != classes:
        if args.evaluate:
            ours, theirs = shorten(classes), shorten(known)
            raise CommandError(f"val/ has the classes {ours}, the weights are for {theirs}")
        head = {"alexnet": "fc3", "resnet18": "fc"}[args.model]
        setattr(network, head, getattr(MODELS[args.model](num_classes=len(classes)), head))
    with torch.device("meta"):  # the network itself knows which images are too small
        try:
            batch = torch.empty(args.batch_size // args.processes, 3, *[args.image_size] * 2)
            MODELS[args.model]().train(not args.evaluate)(batch)
        except ValueError as error:
            raise CommandError(f"--image-size {args.image_size}: {error}") from error
    return network

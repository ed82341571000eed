"""Data sets: folders of images, one for each class, or CIFAR-10. Loaders of their batches."""

import multiprocessing
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate
from torchvision.datasets import CIFAR10

from examples.command import ImageError, UserError, require
from examples.distributed import LOCAL_WORLD_SIZE, RANK, WORLD_SIZE, first_process_first
from examples.images import LabeledImages, train_transform, val_transform
from examples.memory import reuse_memory

CIFAR10_FOLDER = "data"  # in the current folder


# Data sets


@dataclass(frozen=True)
class Images:
    """The training and validation images of a run.

    Attributes:
        train: the training images, or None if they were not asked for.
        val: the validation images.
        classes: the names of the classes; a label is an index into this list.
        ignored: the number of files that are not images.
        description: differs for different images, to detect changes when a run is resumed.
    """

    train: Dataset[Any] | None
    val: Dataset[Any]
    classes: list[str]
    ignored: int
    description: str


def load_images(data: str, image_size: int, val_only: bool) -> Images:
    """Return the training images, randomly cropped, and the validation images, center-cropped.

    Each item is an image, uint8 (3, image_size, image_size), and its label.

    Args:
        data: a folder with train/<class>/ and val/<class>/, or "cifar10", which is downloaded to
            data/ unless it is there.
        image_size: height and width of the images in pixels.
        val_only: whether to leave out the training images.

    Raises:
        ImageError: a folder is missing or has no images, there is one class only, or train/ and
            val/ have different classes.
    """
    if data == "cifar10":
        download_cifar10()
        train = CIFAR10(CIFAR10_FOLDER, train=True, transform=train_transform(image_size))
        val = CIFAR10(CIFAR10_FOLDER, train=False, transform=val_transform(image_size))
        return Images(train, val, val.classes, ignored=0, description="CIFAR-10")

    folder = Path(data)
    val = LabeledImages(folder / "val", val_transform, image_size)
    if len(val.classes) == 1:
        raise ImageError(
            f"{folder / 'val'}: all images are of one class, {val.classes[0]}: "
            "put those of each class in a folder of its own"
        )
    if val_only:
        return Images(None, val, val.classes, val.ignored, description="")

    train = LabeledImages(folder / "train", train_transform, image_size)
    if train.classes != val.classes:
        name = min(set(train.classes) ^ set(val.classes))
        split = "train" if name in val.classes else "val"
        raise ImageError(f"{folder / split}: the class {name} is missing")
    return Images(
        train,
        val,
        val.classes,
        ignored=train.ignored + val.ignored,
        description=f"{len(train)} + {len(val)} images (names {checksum(folder, train, val)})",
    )


def checksum(folder: Path, *splits: LabeledImages) -> str:
    """Return a checksum of the paths of all images, relative to the folder."""
    names = [os.path.relpath(path, folder) for split in splits for path, _ in split.samples]
    return f"{zlib.crc32(repr(names).encode(errors='surrogateescape')):08x}"


def download_cifar10() -> None:
    """Download CIFAR-10 unless it is already there.

    Raises:
        UserError: this is not possible.
    """
    try:
        with first_process_first():
            CIFAR10(CIFAR10_FOLDER, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot download CIFAR-10: {error}") from error


# The random crops of an epoch


class EpochSampler(DistributedSampler[Any]):
    """The images of this process in random order, another one in each epoch.

    It yields (epoch, index of the image): the loader's workers, which live as long as the run,
    learn from it which epoch an image is for.
    """

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


class RandomCrops(Dataset[Any]):
    """Images whose random crops depend on the seed, the epoch and the index, and on nothing else.

    So the number of workers does not change the result of a run.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Any:
        epoch, index = epoch_and_index
        # Without workers, dropout draws from the same generator: it is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash((self.seed, epoch, index)))
            return self.images[index]


# Loaders


def check_loader_options(batch_size: int, workers: int | None, image_size: int | None) -> None:
    """Raise `UserError` if one of these options is invalid. None: it was not given."""
    require(batch_size >= 1, "--batch-size must be at least 1")
    require(
        batch_size % WORLD_SIZE == 0,
        f"--batch-size {batch_size} must be divisible by the {WORLD_SIZE} processes",
    )
    require(workers is None or workers >= 0, "--workers must not be negative")
    require(image_size is None or image_size >= 1, "--image-size must be at least 1")


def training_loader(
    images: Dataset[Any], seed: int, batch_size: int, workers: int | None, device: torch.device
) -> DataLoader[Any]:
    """Return a loader of full batches. Before each epoch, call `loader.sampler.set_epoch`."""
    return DataLoader(
        RandomCrops(images, seed),
        sampler=EpochSampler(images, WORLD_SIZE, RANK, seed=seed, drop_last=True),
        drop_last=True,
        **loader_options(batch_size, workers, device),
    )


def validation_loader(
    images: Dataset[Any], batch_size: int, workers: int | None, device: torch.device
) -> DataLoader[Any]:
    """Return a loader of this process's share of the images. Each image is in one share only."""
    return DataLoader(
        images,
        sampler=range(RANK, len(images), WORLD_SIZE),
        **loader_options(batch_size, workers, device),
    )


def loader_options(batch_size: int, workers: int | None, device: torch.device) -> dict[str, Any]:
    """Return what both loaders have in common.

    Args:
        batch_size: images per step, in total over all processes.
        workers: for each process. None: as many as the machine can run.
        device: where the batches go.
    """
    if workers is None:
        workers = default_workers()
    return {
        "batch_size": batch_size // WORLD_SIZE,
        "num_workers": workers,
        "persistent_workers": workers > 0,  # to start them takes seconds
        "multiprocessing_context": worker_context() if workers > 0 else None,
        "worker_init_fn": prepare_worker,
        "collate_fn": collate,
        "pin_memory": device.type == "cuda",
        "generator": torch.Generator(),  # by default the loader draws from that of dropout
    }


def default_workers() -> int:
    """Return this process's share of the cores that it may run on, at most 16."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows
        cores = os.cpu_count() or 1
    return max(1, min(16, cores // LOCAL_WORLD_SIZE))


def worker_context() -> BaseContext | None:
    """Return how workers start. None: as Python starts them by default.

    On Linux, they are copies of this process by default (before Python 3.14). With several training
    processes, it has threads that talk to the others. A worker that is copied while one of them
    holds a lock may wait for it forever. "forkserver" copies a process without threads.
    """
    if WORLD_SIZE == 1 or multiprocessing.get_start_method() != "fork":
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not by each worker
    return context


def prepare_worker(index: int) -> None:
    """Prepare a worker of a loader."""
    reuse_memory()  # not inherited with all start methods
    # A scheduler ends all processes with SIGTERM. The main process says so in one line.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    sys.excepthook = print_unless_connection_is_lost


def print_unless_connection_is_lost(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an uncaught error of a worker, unless the main process has closed the connection.

    It does so if it is interrupted while a thread of the worker hands it a batch.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


def collate(samples: list[tuple[Tensor | ImageError, int]]) -> Any:
    """Stack images to (N, 3, H, W) and labels to (N,).

    If an image could not be read, return its `ImageError` instead of the batch. If a DataLoader
    worker raised the error, a traceback would be added to its message.
    """
    for image, _ in samples:
        if isinstance(image, ImageError):
            return image
    return default_collate(samples)

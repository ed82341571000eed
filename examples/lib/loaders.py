"""What a network sees of images: crops of them, and loaders of their batches."""

import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from examples.lib.command import ImageError, require, reuse_memory
from examples.lib.data import LabeledImages
from examples.lib.distributed import LOCAL_WORLD_SIZE, RANK, WORLD_SIZE
from examples.lib.images import center_crop, resized_crop

# Crops


class CenterCrops(Dataset[Any]):
    """Images and their labels, for validation. An image is uint8 (3, size, size).

    An item is an `ImageError` if the image cannot be read. It is not raised: a worker of a
    DataLoader would put a traceback into its message.
    """

    def __init__(self, images: LabeledImages, size: int, resize_size: int) -> None:
        self.images = images
        self.size = size
        self.resize_size = resize_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int] | ImageError:
        try:
            image, label = self.images[index]
        except ImageError as error:
            return error
        return center_crop(image, self.size, self.resize_size), label


class RandomCrops(Dataset[Any]):
    """The same for training. An item is asked for by (epoch, index of the image).

    The crops depend on the seed, the epoch and the index, and on nothing else. So the number of
    workers does not change the result of a run.
    """

    def __init__(self, images: LabeledImages, size: int, seed: int) -> None:
        self.images = images
        self.size = size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> tuple[np.ndarray, int] | ImageError:
        epoch, index = epoch_and_index
        try:
            image, label = self.images[index]
        except ImageError as error:
            return error
        generator = torch.Generator().manual_seed(hash((self.seed, epoch, index)))
        return random_crop(image, self.size, generator), label


def random_crop(
    image: Image.Image, size: int, generator: torch.Generator, min_area: float = 0.5
) -> np.ndarray:
    """Return a random crop of an image, uint8 (3, size, size), flipped half of the time.

    Args:
        image: an RGB image.
        size: height and width of the crop in pixels.
        generator: the source of the random numbers.
        min_area: the smallest part of the image's area. The usual 0.08 needs many epochs.
    """
    crop = resized_crop(image, random_box(image.width, image.height, generator, min_area), size)
    flipped = torch.rand(1, generator=generator).item() < 0.5
    return crop[:, :, ::-1].copy() if flipped else crop


def random_box(
    width: int, height: int, generator: torch.Generator, min_area: float
) -> tuple[int, int, int, int]:
    """Return a random box (left, top, right, bottom), as torchvision's RandomResizedCrop draws it.

    Its area is uniform from `min_area` to all of the image, its aspect ratio log-uniform from 3/4
    to 4/3. Of ten boxes, the first that fits is taken. If none does, the image is very long, and
    its center is taken, as wide or as high as these ratios allow.
    """
    lowest, highest = (torch.log(torch.tensor(ratio)).item() for ratio in (3 / 4, 4 / 3))
    for _ in range(10):
        uniform = torch.empty(2)
        area = uniform[:1].uniform_(min_area, 1, generator=generator).item() * width * height
        ratio = torch.exp(uniform[1:].uniform_(lowest, highest, generator=generator)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (1,), generator=generator))
            left = int(torch.randint(width - w + 1, (1,), generator=generator))
            return left, top, left + w, top + h

    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class EpochSampler(DistributedSampler[Any]):
    """The images of this process in random order, another one in each epoch.

    It yields (epoch, index of the image): the loader's workers, which live as long as the run,
    learn from it which epoch an image is for. Before each epoch, call `set_epoch`.
    """

    def __init__(self, images: LabeledImages, seed: int) -> None:
        super().__init__(images, WORLD_SIZE, RANK, seed=seed, drop_last=True)

    def __iter__(self) -> Iterator[Any]:
        return ((self.epoch, index) for index in super().__iter__())


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
    images: Dataset[Any], sampler: EpochSampler, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    """Return a loader of full batches of images, which are asked for by (epoch, index)."""
    return DataLoader(
        images,
        sampler=sampler,
        drop_last=True,
        **loader_options(batch_size, workers),
    )


def validation_loader(
    images: Dataset[Any], count: int, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    """Return a loader of this process's share of `count` images. Each is in one share only."""
    return DataLoader(
        images,
        sampler=range(RANK, count, WORLD_SIZE),
        **loader_options(batch_size, workers),
    )


def loader_options(batch_size: int, workers: int | None) -> dict[str, Any]:
    """Return what both loaders have in common.

    Args:
        batch_size: images per step, in total over all processes.
        workers: for each process. None: as many as the machine can run.
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
        "pin_memory": torch.cuda.is_available(),
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
    threading.Thread(target=end_with_main_process, daemon=True).start()


def end_with_main_process() -> None:
    """End this worker when the process that started it has ended, even by SIGKILL.

    PyTorch's own watchdog looks for the parent process. With "forkserver" that is another one.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def print_unless_connection_is_lost(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print an uncaught error of a worker, unless the main process has closed the connection.

    It does so if it is interrupted while a thread of the worker hands it a batch.
    """
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, traceback)


def collate(samples: list[tuple[np.ndarray, int] | ImageError]) -> Any:
    """Stack images to (N, 3, H, W) and labels to (N,). Return the error if there is one."""
    errors = [sample for sample in samples if isinstance(sample, ImageError)]
    return errors[0] if errors else default_collate(samples)

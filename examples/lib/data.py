"""Data sets: folders of images, one for each class, or CIFAR-10. Loaders of their batches."""

import math
import multiprocessing
import os
import random
import signal
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_collate

from examples.lib.command import ImageError, UserError, require, reuse_memory
from examples.lib.distributed import LOCAL_WORLD_SIZE, RANK, WORLD_SIZE, rank_0_first
from examples.lib.images import (
    center_crop,
    find_images,
    folder_error,
    open_image,
    read_image,
    refuse,
    resized_crop,
)

CIFAR10_FOLDER = "data"  # in the current folder
PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "cat.jpg"


# Images and their labels


class LabeledImages(Dataset[tuple[Image.Image, int]]):
    """RGB images, and the label of each, an index into `classes`."""

    classes: list[str]

    def __len__(self) -> int:
        raise NotImplementedError


class ImageFiles(LabeledImages):
    """The images that `find_images` finds in `folder/<class>/`, with their labels.

    An item is read when it is asked for, by `open_image`, which may raise `ImageError`.

    Args:
        folder: a folder with one folder of images for each class.
        min_size: of `open_image`.

    Attributes:
        classes: the names of the class folders, sorted. Names that begin with a dot are left out.
        samples: the path of each image, relative to the folder, and its label.
        ignored: the number of files that are not images.

    Raises:
        ImageError: a folder cannot be read, there are no class folders, or one has no images.
    """

    def __init__(self, folder: Path, min_size: int) -> None:
        self.folder = folder
        self.min_size = min_size
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise folder_error(error) from error
        folders = sorted(entry.name for entry in entries if os.path.isdir(entry))
        self.classes = [name for name in folders if not name.startswith(".")]
        self.ignored = len(entries) - len(folders)
        if not self.classes:
            raise ImageError(f"{folder}: no class folders (one folder of images for each class)")

        self.samples: list[tuple[str, int]] = []
        for label, name in enumerate(self.classes):
            images, ignored = find_images(folder / name, on_error=refuse)
            if not images:
                raise ImageError(f"{folder / name}: no images in this folder")
            # As text: a Path takes more memory.
            self.samples += [(str(image.relative_to(folder)), label) for image in images]
            self.ignored += ignored

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name, label = self.samples[index]
        return open_image(self.folder / name, self.min_size), label


@dataclass(frozen=True)
class Data:
    """The images of a run, of the same classes in `train` and `val`.

    Attributes:
        train: the training images.
        val: the validation images.
        ignored: the number of files that are not images.
        description: differs for different images, to detect changes when a run is resumed.
    """

    train: LabeledImages
    val: LabeledImages
    ignored: int
    description: str


def load_data(data: str, resize_size: int) -> Data:
    """Find the training and the validation images.

    Args:
        data: a folder with train/<class>/ and val/<class>/, or "cifar10", which is downloaded to
            data/ unless it is there.
        resize_size: the shorter side, in pixels, to which an image is resized before the crop.

    Raises:
        ImageError: a folder is missing or has no images, there is one class only, or train/ and
            val/ have different classes.
    """
    val = load_validation_images(data, resize_size)
    if not isinstance(val, ImageFiles):
        return Data(load_cifar10(train=True), val, ignored=0, description="CIFAR-10")

    train = ImageFiles(Path(data, "train"), val.min_size)
    if train.classes != val.classes:
        name = min(set(train.classes) ^ set(val.classes))
        split = "train" if name in val.classes else "val"
        raise ImageError(f"{Path(data, split)}: the class {name} is missing")
    return Data(
        train=train,
        val=val,
        ignored=train.ignored + val.ignored,
        description=f"{len(train)} + {len(val)} images (names {checksum(train, val)})",
    )


def load_validation_images(data: str, resize_size: int) -> LabeledImages:
    """Find the validation images, as `load_data` does."""
    if data == "cifar10":
        return load_cifar10(train=False)
    val = ImageFiles(Path(data, "val"), min_size=2 * resize_size)
    if len(val.classes) == 1:
        raise ImageError(
            f"{val.folder}: all images are of one class, {val.classes[0]}: "
            "put those of each class in a folder of its own"
        )
    return val


def checksum(*splits: ImageFiles) -> str:
    """Return a checksum of the paths of all images, relative to the folder of the data."""
    names = [f"{split.folder.name}/{name}" for split in splits for name, _ in split.samples]
    return f"{zlib.crc32(repr(names).encode(errors='surrogateescape')):08x}"


def load_cifar10(train: bool) -> LabeledImages:
    """Return torchvision's data set CIFAR-10. It is downloaded unless it is there.

    Raises:
        UserError: this is not possible.
    """
    from torchvision.datasets import CIFAR10

    try:
        with rank_0_first():
            images: LabeledImages = CIFAR10(CIFAR10_FOLDER, train, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot download CIFAR-10: {error}") from error
    return images


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


# Images without labels, to calibrate and to compare with


def choose_images(data: str, size: int, resize_size: int, count: int, seed: int) -> np.ndarray:
    """Return the center crops of up to `count` random images, uint8 (N, 3, size, size).

    Files that cannot be read are left out, with a note.

    Args:
        data: a folder of images, or "cifar10" for its training images.
        size: height and width of the crops in pixels.
        resize_size: the shorter side of an image before the crop.
        count: the number of images.
        seed: decides which images are chosen.

    Raises:
        ImageError: a folder cannot be read, or no image.
    """
    if data == "cifar10":
        images = load_cifar10(train=True)
        chosen = random.Random(seed).sample(range(len(images)), min(count, len(images)))
        return np.stack([center_crop(images[index][0], size, resize_size) for index in chosen])

    files, _ = find_images(Path(data), on_error=refuse)
    random.Random(seed).shuffle(files)
    crops: list[np.ndarray] = []
    for file in files:
        if len(crops) == count:
            break
        try:
            crops.append(read_image(file, size, resize_size))
        except ImageError as error:
            print(f"note: left out {error}", file=sys.stderr)
    if not crops:
        raise ImageError(f"{data}: no images in this folder")
    return np.stack(crops)


def crop_photograph(size: int, count: int) -> np.ndarray:
    """Return random crops of the repository's photograph, uint8 (count, 3, size, size)."""
    photograph, generator = open_image(PHOTOGRAPH), torch.Generator().manual_seed(0)
    return np.stack([random_crop(photograph, size, generator, min_area=0.08) for _ in range(count)])


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
    images: LabeledImages, size: int, sampler: EpochSampler, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    """Return a loader of full batches of random crops."""
    return DataLoader(
        RandomCrops(images, size, sampler.seed),
        sampler=sampler,
        drop_last=True,
        **loader_options(batch_size, workers),
    )


def validation_loader(
    images: LabeledImages, size: int, resize_size: int, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    """Return a loader of this process's share of the images. Each image is in one share only."""
    return DataLoader(
        CenterCrops(images, size, resize_size),
        sampler=range(RANK, len(images), WORLD_SIZE),
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

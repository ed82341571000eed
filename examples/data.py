"""Data sets: folders of images, one for each class, or CIFAR-10."""

import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.datasets import CIFAR10

from examples.images import ImageError, LabeledImages, train_transform, val_transform

CIFAR10_FOLDER = "data"  # in the current folder


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
        data: a folder with train/<class>/ and val/<class>/, or "cifar10", which must have been
            downloaded.
        image_size: height and width of the images in pixels.
        val_only: whether to leave out the training images.

    Raises:
        ImageError: a folder is missing or has no images, or train/ and val/ have different classes.
    """
    if data == "cifar10":
        train = CIFAR10(CIFAR10_FOLDER, train=True, transform=train_transform(image_size))
        val = CIFAR10(CIFAR10_FOLDER, train=False, transform=val_transform(image_size))
        return Images(train, val, val.classes, ignored=0, description="CIFAR-10")

    folder = Path(data)
    val = LabeledImages(folder / "val", val_transform, image_size)
    if val_only:
        return Images(None, val, val.classes, val.ignored, description="")

    train = LabeledImages(folder / "train", train_transform, image_size)
    for name in sorted(set(train.classes) ^ set(val.classes)):
        split = "train" if name in val.classes else "val"
        raise ImageError(f"the class {name} is missing from {folder / split}")
    return Images(
        train,
        val,
        val.classes,
        ignored=train.ignored + val.ignored,
        description=f"{len(train)} + {len(val)} images (names {checksum(folder, train, val)})",
    )


def checksum(folder: Path, *splits: LabeledImages) -> str:
    """Return a checksum of the paths of all images, relative to the folder."""
    names = [str(path.relative_to(folder)) for split in splits for path, _ in split.samples]
    return f"{zlib.crc32(repr(names).encode(errors='surrogateescape')):08x}"


def download_cifar10() -> None:
    """Download CIFAR-10 unless it is already there. Exit with an error message on failure."""
    try:
        CIFAR10(CIFAR10_FOLDER, download=True)
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: cannot download CIFAR-10: {error}")


def collate(samples: list[tuple[Tensor | ImageError, int]]) -> Any:
    """Stack images to (N, 3, H, W) and labels to (N,).

    If an image could not be read, return its `ImageError` instead of the batch. If a DataLoader
    worker raised the error, a traceback would be added to its message.
    """
    for image, _ in samples:
        if isinstance(image, ImageError):
            return image
    return default_collate(samples)

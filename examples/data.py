"""The data sets: a folder of images for each class, or CIFAR-10."""

import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.datasets import CIFAR10

from examples.images import ImageError, LabeledImages, train_transform, val_transform

CIFAR10_FOLDER = "data"


@dataclass(frozen=True)
class Images:
    """The images of a run."""

    train: Dataset[Any] | None  # None: only to evaluate
    val: Dataset[Any]
    classes: list[str]
    ignored: int  # files that are not images
    description: str  # tells other images apart when a run is resumed


def load_images(data: str, image_size: int, val_only: bool) -> Images:
    """Return the images to train on, randomly cropped, and those to validate on.

    Args:
        data: a folder that holds train/<class>/ and val/<class>/, or "cifar10".
        image_size: height and width of the images in pixels.
        val_only: whether to read the validation images only.

    Raises:
        ImageError: a folder is missing or holds no images.
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
    """Return a checksum of the names of all images."""
    names = [str(path.relative_to(folder)) for split in splits for path, _ in split.samples]
    return f"{zlib.crc32(repr(names).encode(errors='surrogateescape')):08x}"


def download_cifar10() -> None:
    """Download CIFAR-10, unless it is there."""
    try:
        CIFAR10(CIFAR10_FOLDER, download=True)
    except (OSError, RuntimeError) as error:
        sys.exit(f"error: cannot download CIFAR-10: {error}")


def collate(samples: list[tuple[Tensor | ImageError, int]]) -> Any:
    """Stack images and labels. The error of a damaged image takes the place of its batch."""
    for image, _ in samples:
        if isinstance(image, ImageError):
            return image
    return default_collate(samples)

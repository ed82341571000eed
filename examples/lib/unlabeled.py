"""Images without their labels: to calibrate int8 with, and to compare logits on."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from examples.lib.classifier import Metadata
from examples.lib.command import ImageError
from examples.lib.data import Cifar10
from examples.lib.images import center_crop, find_images, open_image, read_image, refuse
from examples.lib.loaders import random_crop
from examples.lib.split import VAL_FRACTION, content_hash, is_split, is_val

PHOTOGRAPH = Path(__file__).parents[2] / "docs" / "cat.jpg"


def choose_images(
    data: str, metadata: Metadata, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Choose up to `count` random images to calibrate with, and as many to compare logits on.

    Both are center crops for the network, uint8 (N, 3, size, size). The first are training images,
    the others validation images, as examples.train divides them. Where there is only one image, it
    is both. Files that cannot be read are left out, with a note.

    Args:
        data: a folder of images, in any folders below it, or "cifar10".
        metadata: the size of the images, and how a folder of classes was split.
        count: the number of images of each kind.
        seed: decides which images are chosen.

    Raises:
        ImageError: a folder cannot be read, or no image.
    """
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}  # by whether it is for validation
    size, resize_size = metadata.image_size, metadata.resize_size
    if data == "cifar10":
        for for_validation, crops in parts.items():
            images = Cifar10(train=not for_validation)
            for index in random.Random(seed).sample(range(len(images)), min(count, len(images))):
                crops.append(center_crop(images[index][0], size, resize_size))
    else:
        fraction = metadata.val_fraction or VAL_FRACTION
        for file, for_validation in shuffled_files(data, fraction, seed):
            if len(parts[for_validation]) < count:
                try:
                    parts[for_validation].append(read_image(file, size, resize_size))
                except ImageError as error:
                    print(f"note: left out {error}", file=sys.stderr)
            if min(map(len, parts.values())) == count:
                break

    training, validation = parts[False] or parts[True], parts[True] or parts[False]
    if not training:
        raise ImageError(f"{data}: no images in this folder")
    return np.stack(training), np.stack(validation)


def shuffled_files(data: str, val_fraction: float, seed: int) -> Iterator[tuple[Path, bool]]:
    """Yield the images of a folder in random order, each with whether it is for validation."""
    files, _ = find_images(Path(data), on_error=refuse)
    random.Random(seed).shuffle(files)
    for file in files:
        if is_split(data):
            yield file, is_val(content_hash(file), val_fraction)
        else:
            yield file, Path(data, "val") in file.parents


def crop_photograph(size: int, count: int) -> np.ndarray:
    """Return random crops of the repository's photograph, uint8 (count, 3, size, size)."""
    photograph, generator = open_image(PHOTOGRAPH), torch.Generator().manual_seed(0)
    return np.stack([random_crop(photograph, size, generator, min_area=0.08) for _ in range(count)])

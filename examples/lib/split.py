"""Read each image of a data set once, and decide which are for training and for validation."""

import hashlib
import sys
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch.utils.data import DataLoader, Dataset

from examples.lib.command import ImageError, require
from examples.lib.data import Cifar10, ImageFiles, LabeledImages, find_image_files
from examples.lib.distributed import RANK, WORLD_SIZE, gather, note_once
from examples.lib.images import folder_error, open_image
from examples.lib.loaders import loader_options
from examples.lib.metrics import progress_bar

Part = Literal["train", "val", "all"]
VAL_FRACTION = 0.2  # of the images of a folder that is split, if nobody says otherwise
NAMES_OF_PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}


@dataclass(frozen=True)
class Selection:
    """What was decided when the images were read. A run keeps it: to resume, none is read again.

    Attributes:
        val: the names of the validation images of a folder that was split.
        damaged: the names of the files that cannot be used.
    """

    val: frozenset[str]
    damaged: frozenset[str]


@dataclass(frozen=True)
class Data:
    """The images of a run, of the same classes in `train` and `val`.

    Attributes:
        train: the training images.
        val: the validation images.
        selection: how they were chosen.
        resize_size: the shorter side, in pixels, of a validation image before its center crop.
    """

    train: LabeledImages
    val: LabeledImages
    selection: Selection
    resize_size: int

    @property
    def ignored(self) -> int:
        """The number of files that are not images."""
        return self.train.ignored + (0 if self.selection.val else self.val.ignored)

    @property
    def description(self) -> str:
        """Differs for different images, to detect changes when a run is resumed."""
        if not (isinstance(self.train, ImageFiles) and isinstance(self.val, ImageFiles)):
            return "CIFAR-10"
        names = [name for images in (self.train, self.val) for name, _ in images.samples]
        checksum = zlib.crc32(repr(names).encode(errors="surrogateescape"))
        return f"{len(self.train)} + {len(self.val)} images (names {checksum:08x})"


def is_split(data: str) -> bool:
    """Return whether DATA is a folder of class folders, without train/ and val/."""
    return data != "cifar10" and not any(Path(data, part).is_dir() for part in ("train", "val"))


def load_images(
    data: str,
    parts: tuple[Part, ...],
    resize_size: int,
    val_fraction: float,
    skip_damaged: bool = False,
    numeric_order: bool = False,
    workers: int | None = None,
    selection: Selection | None = None,
) -> tuple[list[LabeledImages], Selection]:
    """Find the images of parts of a data set, and read each once.

    Args:
        data: a folder with train/<class>/ and val/<class>/, a folder with <class>/, which is split,
            or "cifar10", which is downloaded to data/ unless it is there.
        parts: which images to return. "all": those of a folder that is split.
        resize_size: the shorter side, in pixels, to which an image is resized before the crop.
        val_fraction: which part of the images is for validation, in a folder that is split.
        skip_damaged: leave out the files that cannot be used.
        numeric_order: of `find_image_files`.
        workers: processes that read the images. None: as many as the machine can run.
        selection: that of the run which is resumed. None: read the images, and decide.

    Raises:
        UserError: a folder is missing or has no images, the parts have different classes or one
            class only, a class cannot be split, or an image cannot be used.
    """
    if data == "cifar10":
        require("all" not in parts, "--part all: cifar10 has training and test images")
        cifar10: list[LabeledImages] = [Cifar10(train=part == "train") for part in parts]
        return cifar10, Selection(val=frozenset(), damaged=frozenset())

    folders: tuple[str, ...] = ("",) if is_split(data) else parts
    require("all" not in folders, f"--part all: {data} has training and validation images")
    found = find_parts(Path(data), folders, 2 * resize_size, numeric_order)
    if selection is None:
        hashes = read_images(found, skip_damaged, workers)
        names = [name for images in found for name, _ in images.samples]
        selection = Selection(
            val=split(found[0], hashes, val_fraction) if is_split(data) else frozenset(),
            damaged=frozenset(name for name in names if name not in hashes),
        )

    sound = [images.those_not_in(selection.damaged) for images in found]
    for images in sound:
        for label in set(range(len(images.classes))) - set(images.labels()):
            raise ImageError(f"{data}: no image of the class {images.classes[label]} can be used")
    if not is_split(data):
        return list(sound), selection
    (images,) = sound
    split_parts: dict[Part, LabeledImages] = {
        "train": images.those_not_in(selection.val),
        "val": images.those_in(selection.val),
        "all": images,
    }
    return [split_parts[part] for part in parts], selection


def find_parts(
    data: Path, folders: tuple[str, ...], min_size: int, numeric_order: bool
) -> list[ImageFiles]:
    """Find the images in folders of a data set, which must have the same classes.

    Raises:
        ImageError: this is not so, or there is one class only.
    """
    for name, other in (("train", "val"), ("val", "train")):
        if name in folders and not (data / name).is_dir() and (data / other).is_dir():
            raise ImageError(
                f"{data} has {other}/ and no {name}/: add {data / name}, or give {data / other} "
                "as DATA to split it"
            )
    found = [find_image_files(data, folder, min_size, numeric_order) for folder in folders]
    first = found[0]
    if len(first.classes) == 1:
        raise ImageError(
            f"{data / folders[0]}: all images are of one class, {first.classes[0]}: "
            "put those of each class in a folder of its own"
        )
    if {name.lower() for name in first.classes} <= NAMES_OF_PARTS:
        raise ImageError(
            f"{data / folders[0]}: {', '.join(first.classes)} are no classes: name the folders "
            "train and val"
        )
    for folder, images in zip(folders[1:], found[1:], strict=True):
        for name in sorted(set(first.classes) ^ set(images.classes)):
            where = folders[0] if name in images.classes else folder
            raise ImageError(f"{data / where}: the class {name} is missing")
    return found


# Reading each image once


class Reading(Dataset[tuple[int, str]]):
    """For each image: a hash of its file, and the reason why it cannot be used, or ""."""

    def __init__(self, parts: list[ImageFiles]) -> None:
        self.paths = [images.folder / name for images in parts for name, _ in images.samples]
        self.min_size = parts[0].min_size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, str]:
        path = self.paths[index]
        try:
            open_image(path, self.min_size)
            return content_hash(path), ""
        except ImageError as error:
            return 0, str(error)


def read_images(parts: list[ImageFiles], skip_damaged: bool, workers: int | None) -> dict[str, int]:
    """Read each image once, and return a hash of the content of each that can be used, by its name.

    Name all others on standard error.

    Raises:
        UserError: there are others, and `skip_damaged` is false.
    """
    reading = Reading(parts)
    loader = DataLoader(
        reading,
        sampler=range(RANK, len(reading), WORLD_SIZE),
        **{**loader_options(16 * WORLD_SIZE, workers), "collate_fn": list},
    )
    with progress_bar(loader, "reading the images") as batches:
        results = gather([result for batch in batches for result in batch])

    names = [name for images in parts for name, _ in images.samples]
    errors = [error for _, error in results if error]
    if errors and RANK == 0:
        print("\n".join(f"damaged: {error}" for error in errors), file=sys.stderr)
    left_out = f"{len(errors)} of {len(names)} images cannot be used"
    require(skip_damaged or not errors, f"{left_out}: remove them, or add --skip-damaged")
    if errors:
        note_once(f"{left_out} and are left out")
    return {
        name: content for name, (content, error) in zip(names, results, strict=True) if not error
    }


# Splitting


def content_hash(path: Path) -> int:
    """Return a number of 64 bits that depends on the content of a file alone.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise folder_error(error) from error
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


def is_val(content: int, val_fraction: float) -> bool:
    """Return whether the image with this `content_hash` is for validation."""
    return content < val_fraction * 2**64


def split(images: ImageFiles, hashes: dict[str, int], val_fraction: float) -> frozenset[str]:
    """Return the names of the validation images: those with a low hash.

    So a split depends on the content of the files alone, another image moves none, and all copies
    of a file are on the same side. Only if this leaves a class without validation images, its image
    with the lowest hash is one; if without training images, that with the highest is none.

    Args:
        images: the images of all classes.
        hashes: numbers of 64 bits by name. What has none is left out.
        val_fraction: the fraction of the images to return, more or less.

    Raises:
        ImageError: a class has only one image, or copies of it.
    """
    names_of: dict[int, list[str]] = defaultdict(list)
    of_class: list[set[int]] = [set() for _ in images.classes]
    for name, label in images.samples:
        if name in hashes:
            names_of[hashes[name]].append(name)
            of_class[label].add(hashes[name])

    val = {content for content in names_of if is_val(content, val_fraction)}
    for name, contents in zip(images.classes, of_class, strict=True):
        if len(contents) < 2:
            number = "no image that can be used" if not contents else "only one image"
            raise ImageError(f"{images.folder / name}: {number}, too few to split the class")
        if not contents & val:
            val.add(min(contents))
        if contents <= val:
            val.remove(max(contents))
    for name, contents in zip(images.classes, of_class, strict=True):
        if not contents & val or contents <= val:  # because of copies in other classes
            raise ImageError(
                f"{images.folder / name}: too few images of its own to split the class"
            )

    mixed = [contents for contents in names_of.values() if is_mixed(contents)]
    if mixed:
        note_once(
            f"images with copies in folders of other classes: {len(mixed)}, such as "
            f"{mixed[0][0]} and {mixed[0][-1]}"
        )
    return frozenset(name for content in val for name in names_of[content])


def is_mixed(names: list[str]) -> bool:
    """Return whether files in different class folders have these names."""
    return len({Path(name).parts[0] for name in names}) > 1

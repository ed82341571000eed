"""Data sets: folders of images, one for each class, or CIFAR-10."""

import os
import unicodedata
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from examples.lib.command import ImageError, UserError
from examples.lib.distributed import rank_0_first
from examples.lib.images import find_images, folder_error, is_hidden, open_image, refuse

CIFAR10_FOLDER = "data"  # in the current folder


class LabeledImages(Dataset[tuple[Image.Image, int]]):
    """RGB images, and the label of each, an index into `classes`."""

    classes: list[str]
    ignored: int  # files that are not images

    def __len__(self) -> int:
        raise NotImplementedError

    def labels(self) -> list[int]:
        """Return the labels of all images."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Return what a user knows the image by."""
        return f"image {index}"


@dataclass(eq=False)
class ImageFiles(LabeledImages):
    """Files in a folder. An item is read when it is asked for: `open_image` may raise `ImageError`.

    Attributes:
        folder: of the data set.
        samples: the path of each image, relative to the folder, and its label.
        classes: the name of each label.
        ignored: the number of files in the class folders that are not images.
        min_size: of `open_image`.
    """

    folder: Path
    samples: list[tuple[str, int]]
    classes: list[str]
    ignored: int
    min_size: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        name, label = self.samples[index]
        return open_image(self.folder / name, self.min_size), label

    def labels(self) -> list[int]:
        return [label for _, label in self.samples]

    def name(self, index: int) -> str:
        return self.samples[index][0]

    def those_in(self, names: Container[str]) -> "ImageFiles":
        """Return the images with these names."""
        return replace(self, samples=[sample for sample in self.samples if sample[0] in names])

    def those_not_in(self, names: Container[str]) -> "ImageFiles":
        """Return the images with other names."""
        return replace(self, samples=[sample for sample in self.samples if sample[0] not in names])


def find_image_files(
    folder: Path, part: str, min_size: int, numeric_order: bool = False
) -> ImageFiles:
    """Find the images in `folder/part/<class>/`, where each class has a folder with its name.

    Folders that `is_hidden` names are left out. Names that look the same are the same: "é" is
    one character on Linux, and two in names that come from a Mac (Unicode's NFC and NFD).

    Args:
        folder: of the data set.
        part: the name of a folder in it, such as "train", or "" for the folder itself.
        min_size: of `open_image`.
        numeric_order: sort the classes as numbers: 2 before 10. Otherwise they are sorted as text.

    Raises:
        ImageError: a folder cannot be read, there are no class folders, one has no images, or the
            name of one is no number and `numeric_order` is true.
    """
    folder_of_classes = folder / part
    try:
        entries = list(os.scandir(folder_of_classes))
    except OSError as error:
        raise folder_error(error) from error
    folders = sorted(entry.name for entry in entries if os.path.isdir(entry))
    class_of = {name: unicodedata.normalize("NFC", name) for name in folders if not is_hidden(name)}
    if not class_of:
        raise ImageError(
            f"{folder_of_classes}: no class folders (one folder of images for each class)"
        )
    try:
        classes = sorted(set(class_of.values()), key=int if numeric_order else None)
    except ValueError as error:
        raise ImageError(f"{folder_of_classes}: --numeric-order needs folders 0, 1, …") from error

    samples: list[tuple[str, int]] = []
    ignored = len(entries) - len(folders)
    for name, class_name in class_of.items():
        images, others = find_images(folder_of_classes / name, on_error=refuse)
        if not images:
            raise ImageError(f"{folder_of_classes / name}: no images in this folder")
        # As text: a Path takes more memory.
        label = classes.index(class_name)
        samples += [(str(image.relative_to(folder)), label) for image in images]
        ignored += others
    return ImageFiles(folder, samples, classes, ignored, min_size)


class Cifar10(LabeledImages):
    """The training or the test images of CIFAR-10, which torchvision downloads to data/.

    Raises:
        UserError: this is not possible.
    """

    def __init__(self, train: bool) -> None:
        from torchvision.datasets import CIFAR10

        try:
            with rank_0_first():
                self.images = CIFAR10(CIFAR10_FOLDER, train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot download CIFAR-10: {error}") from error
        self.classes = self.images.classes
        self.ignored = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.images[index]
        return image, label

    def labels(self) -> list[int]:
        return list(self.images.targets)

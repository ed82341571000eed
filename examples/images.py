"""Images from files and from folders of classes."""

from typing import Any, Iterator

import click
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchvision.datasets import ImageFolder


class ImageError(click.ClickException):
    """A file that is not an image; the message is one line that says why."""

    def format_message(self) -> str:  # a process that loads images puts its traceback above
        return self.message.splitlines()[-1].split("ImageError: ")[-1]


def open_image(path: str) -> Image.Image:
    """Return the picture in `path` as a person sees it: upright, in RGB, on white where clear.

    Raises:
        ImageError: the file cannot be read or decoded whole, or is too large to be decoded.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # 16 bits a pixel, which RGB would clip to 8
                return upright.point(lambda value: value / 256).convert("L").convert("RGB")
            if upright.has_transparency_data:
                clear = upright.convert("RGBA")
                white = Image.new("RGBA", clear.size, "white")
                return Image.alpha_composite(white, clear).convert("RGB")
            return upright.convert("RGB")
    except Exception as error:  # decoders raise all sorts at damaged files
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


class LabeledImages(ImageFolder):  # type: ignore[misc]
    """The images in `folder/<class>/`; an item's seed decides its augmentation in any process.

    Raises:
        OSError: there is no such folder, or it has no class or a class without images.
        ImageError: an image cannot be decoded.
    """

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        (path, label), seed = self.samples[item[0]], item[1]
        image = open_image(path)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(image), label  # (3, H, W), bytes


class Shuffle(DistributedSampler[Any]):
    """A process's share of the shuffled images, each with the seed of its augmentation."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((index, mix(self.seed, self.epoch, index)) for index in super().__iter__())


def mix(*numbers: int) -> int:
    """Return one seed made of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

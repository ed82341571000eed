"""Images: which files are images, and how one becomes a tensor."""

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

try:
    import pillow_heif
except ImportError:  # without it the .heic files of phones are not images
    pass
else:
    pillow_heif.register_heif_opener()

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet
MAX_ASPECT_RATIO = 100  # a square crop of a longer picture would show less than 1 % of it

# Every format that Pillow opens (MPO as JPEG), but for those that it recognizes and cannot decode.
EXTENSIONS = {
    extension
    for extension, name in Image.registered_extensions().items()
    if name in {*Image.OPEN, "MPO"} - {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
}

# Pillow warns of oddities in files that it reads all the same; what it cannot read, it raises.
warnings.filterwarnings("ignore", module="PIL")


class ImageError(Exception):
    """A file or a folder that cannot be used; the message is one line that names it."""


# From a file to a picture


def open_image(path: Path, min_size: int | None = None) -> Image.Image:
    """Return the picture in `path` as a person sees it: upright, in RGB, transparency over white.

    Args:
        path: a file in any format of Pillow's.
        min_size: allows a JPEG to be decoded at 1/2, 1/4 or 1/8 of its width and height, at the
            smallest of them that leaves both at least `min_size` pixels long. A JPEG whose
            shorter side is below `2 * min_size`, and every other format, is decoded in full.

    Raises:
        ImageError: the file cannot be read or decoded, is larger than Pillow allows, is more than
            `MAX_ASPECT_RATIO` times as long as wide, or has values of unknown scale.
    """
    try:
        with Image.open(path) as image:
            if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
                raise ValueError(
                    f"{image.width} x {image.height} pixels, too long for a square crop"
                )
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            image.load()
            with contextlib.suppress(Exception):  # a broken EXIF block
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return gray_of_8_bits(image).convert("RGB")
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # decoders raise all sorts at damaged files
        raise ImageError(f"{path}: {reason(error)}") from error


def gray_of_8_bits(image: Image.Image) -> Image.Image:
    """Return an image of 16 bits a pixel or more (mode I;16, I;16B, I or F) scaled to 8 bits.

    Raises:
        ValueError: the scale of the values is not known.
    """
    values = np.asarray(image).astype("float32")
    white = None
    if image.mode == "F":
        white = 1  # by convention; values above it are refused below
    elif image.format in ("PNG", "PPM", "JPEG2000"):
        white = 2**16 - 1  # Pillow scales other depths to this one
    elif isinstance(image, TiffImageFile) and image.mode != "I":
        white = 2 ** image.tag_v2[BITSPERSAMPLE][0] - 1

    low, high = values.min(), values.max()
    if white is None or not 0 <= low <= high <= white:
        raise ValueError(f"values from {low:g} to {high:g} of unknown scale: convert it to 8 bits")
    if isinstance(image, TiffImageFile) and image.tag_v2[PHOTOMETRIC_INTERPRETATION] == 0:
        values = white - values  # 0 is white
    return Image.fromarray(np.rint(values * (255 / white)).astype("uint8"))


def reason(error: Exception) -> str:
    """Return in one line why a file cannot be used."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a format that is not supported"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# From a picture to a tensor


def train_transform(size: int) -> v2.Compose:
    """Return a random crop, flipped half of the time, as uint8 (3, size, size)."""
    crop = v2.RandomResizedCrop(size, scale=(0.5, 1))  # the usual 0.08 needs many epochs
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def val_transform(size: int) -> v2.Compose:
    """Return the center crop of torchvision's published accuracies, as uint8 (3, size, size)."""
    return v2.Compose([v2.Resize(resized_side(size)), v2.CenterCrop(size), v2.PILToTensor()])


def resized_side(size: int) -> int:
    """Return the length of the shorter side from which `val_transform` takes its crop."""
    return round(size * 256 / 224)


def normalize(images: Tensor) -> Tensor:
    """Return crops, uint8 (N, 3, H, W), as the floats that the networks were trained with.

    It is meant for batches on the device: bytes are moved there four times as fast as floats.
    """
    normalized: Tensor = v2.functional.normalize(images / 255, MEAN, STD)
    return normalized


def read_image(path: Path, transform: Callable[[Image.Image], Tensor], size: int) -> Tensor:
    """Return the crop that `train_transform(size)` or `val_transform(size)` takes of a file.

    A JPEG is decoded at a reduced size as long as its sides stay twice as long as those that
    `val_transform` resizes to. A photograph of 12 megapixels then takes a third of the time, and
    its normalized values change by about 0.004 on average.

    Raises:
        ImageError: the file cannot be used.
    """
    image = open_image(path, min_size=2 * resized_side(size))
    try:
        return transform(image)
    except Exception as error:  # such as MemoryError
        raise ImageError(f"{path}: {reason(error)}") from error


# Folders of images


def find_images(folder: Path) -> tuple[list[Path], int]:
    """Return the images below a folder, sorted, and the number of files that are ignored.

    An image is a file whose extension is one of Pillow's and whose name does not begin with a dot.
    Folders whose names begin with a dot are not searched, and no folder is searched twice, however
    many links lead to it.

    Raises:
        ImageError: a folder cannot be read.
    """
    images, ignored = [], 0
    waiting, seen = [folder], {folder.resolve()}
    try:
        while waiting:
            here = waiting.pop()
            for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
                path = Path(entry)
                hidden = entry.name.startswith(".")
                if entry.is_dir():
                    target = path.resolve()
                    leads_back = here.resolve().is_relative_to(target)
                    if not (hidden or leads_back or target in seen):
                        waiting.append(path)
                        seen.add(target)
                elif entry.is_file() and not hidden and path.suffix.lower() in EXTENSIONS:
                    images.append(path)
                else:
                    ignored += 1
    except OSError as error:
        raise ImageError(f"{error.filename}: {error.strerror}") from error
    return sorted(images), ignored


class LabeledImages(Dataset[tuple[Tensor | ImageError, int]]):
    """The images in `folder/<class>/`, at any depth, with the index of their class.

    Attributes:
        classes: the names of the folders, sorted, without those that begin with a dot.
        samples: the path and the class of each image.
        ignored: the number of files that are not images.

    Raises:
        ImageError: the folder cannot be read, has no classes, or a class has no images.
    """

    def __init__(self, folder: Path, transform: Callable[[int], v2.Compose], size: int) -> None:
        self.transform = transform(size)
        self.size = size
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ImageError(f"{folder}: {error.strerror}") from error
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        self.classes = [name for name in folders if not name.startswith(".")]
        if not self.classes:
            raise ImageError(f"{folder}: no folders with the images of each class")

        self.samples: list[tuple[Path, int]] = []
        self.ignored = len(entries) - len(folders)
        for label, name in enumerate(self.classes):
            images, ignored = find_images(folder / name)
            if not images:
                raise ImageError(f"{folder / name}: no images in this folder")
            self.samples += [(image, label) for image in images]
            self.ignored += ignored

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor | ImageError, int]:
        """Return an image, uint8 (3, size, size), or what is wrong with its file, and its class."""
        path, label = self.samples[index]
        try:
            return read_image(path, self.transform, self.size), label
        except ImageError as error:
            return error, label

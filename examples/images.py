"""Find image files, read them, and turn them into tensors."""

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
except ImportError:  # optional: without it, HEIC photos from phones are ignored
    pass
else:
    pillow_heif.register_heif_opener()

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet's RGB values, from 0 to 1
MAX_ASPECT_RATIO = 100  # of a longer picture, a square crop shows less than 1 %

# Extensions of all formats that Pillow opens (MPO as JPEG), except those that it recognizes but
# cannot decode.
EXTENSIONS = {
    extension
    for extension, name in Image.registered_extensions().items()
    if name in {*Image.OPEN, "MPO"} - {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
}

# Pillow warns about oddities in files that it can read. For files that it cannot read, it raises.
warnings.filterwarnings("ignore", module="PIL")


class ImageError(Exception):
    """A file or folder cannot be used. The message is one line that begins with its path."""


# From a file to a picture


def open_image(path: Path, min_size: int | None = None) -> Image.Image:
    """Return the picture in a file as an RGB image, upright and with transparent parts in white.

    Args:
        path: a file in any format that Pillow opens.
        min_size: allows a JPEG to be decoded, faster, at 1/2, 1/4 or 1/8 of its width and height.
            The smallest of these sizes is used at which both sides have at least `min_size` pixels.
            If there is none, or for other formats, the picture is decoded at full size.

    Raises:
        ImageError: the file cannot be read or decoded, has more pixels than Pillow allows, has one
            side more than `MAX_ASPECT_RATIO` times as long as the other, or has gray values whose
            scale is unknown.
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
            with contextlib.suppress(Exception):  # ignore broken EXIF data
                ImageOps.exif_transpose(image, in_place=True)

            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return to_8_bit_gray(image).convert("RGB")
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
            return image.convert("RGB")
    except Exception as error:  # for damaged files, decoders raise many kinds of exceptions
        raise ImageError(f"{path}: {describe_error(error)}") from error


def to_8_bit_gray(image: Image.Image) -> Image.Image:
    """Scale a gray image of 16 or more bits per pixel (mode I;16, I;16B, I or F) to 8 bits.

    Raises:
        ValueError: the value of white is unknown, or some values are outside of 0 to white.
    """
    values = np.asarray(image).astype("float32")
    white = None
    if image.mode == "F":
        white = 1  # by convention
    elif image.format in ("PNG", "PPM", "JPEG2000"):
        white = 2**16 - 1  # Pillow scales other bit depths to 16 bits
    elif isinstance(image, TiffImageFile) and image.mode != "I":
        white = 2 ** image.tag_v2[BITSPERSAMPLE][0] - 1

    low, high = values.min(), values.max()
    if white is None or not 0 <= low <= high <= white:
        raise ValueError(
            f"gray values from {low:g} to {high:g} of unknown scale: convert the image to 8 bits"
        )
    if isinstance(image, TiffImageFile) and image.tag_v2[PHOTOMETRIC_INTERPRETATION] == 0:
        values = white - values  # this file stores white as 0
    return Image.fromarray(np.rint(values * (255 / white)).astype("uint8"))


def describe_error(error: Exception) -> str:
    """Return the reason why a file cannot be used, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in a format that is not supported"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# From a picture to a tensor


def train_transform(size: int) -> v2.Compose:
    """Return the transform for training, from an image to a random crop, uint8 (3, size, size).

    The crop is flipped horizontally half of the time.
    """
    crop = v2.RandomResizedCrop(size, scale=(0.5, 1))  # the usual 0.08 to 1 needs many epochs
    return v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])


def val_transform(size: int) -> v2.Compose:
    """Return the transform for validation, from an image to its center crop, uint8 (3, size, size).

    With a size of 224, it is the transform of torchvision's published accuracies.
    """
    return v2.Compose([v2.Resize(resize_size(size)), v2.CenterCrop(size), v2.PILToTensor()])


def resize_size(size: int) -> int:
    """Return the shorter side, in pixels, to which `val_transform` resizes before it crops."""
    return round(size * 256 / 224)


def normalize(images: Tensor) -> Tensor:
    """Convert crops (N, 3, H, W) from uint8 to float32, normalized as the networks expect them.

    Call this on the device: as uint8, the crops are moved there four times as fast.
    """
    normalized: Tensor = v2.functional.normalize(images / 255, MEAN, STD)
    return normalized


def read_image(path: Path, transform: Callable[[Image.Image], Tensor], size: int) -> Tensor:
    """Read a file and return its crop, uint8 (3, size, size).

    A large JPEG is decoded at a reduced size, but both sides keep at least twice the pixels of the
    shorter side that `val_transform` resizes to. A photograph of 12 megapixels then takes a third
    of the time, and its normalized values change by about 0.004 on average.

    Args:
        path: the file.
        transform: `train_transform(size)` or `val_transform(size)`.
        size: height and width of the crop in pixels.

    Raises:
        ImageError: the file cannot be used.
    """
    image = open_image(path, min_size=2 * resize_size(size))
    try:
        return transform(image)
    except Exception as error:  # such as MemoryError
        raise ImageError(f"{path}: {describe_error(error)}") from error


# Folders of images


def find_images(folder: Path) -> tuple[list[Path], int]:
    """Find the images in a folder and in its subfolders.

    An image is a file with an extension in `EXTENSIONS`. Files and subfolders whose names begin
    with a dot are left out. If several links lead to a folder, it is searched once. Links to a
    folder above are not followed.

    Returns:
        The sorted paths of the images, and the number of other files.

    Raises:
        ImageError: a folder cannot be read.
    """
    images, ignored = [], 0
    to_search, seen = [folder], {folder.resolve()}
    try:
        while to_search:
            here = to_search.pop()
            for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
                path = Path(entry)
                hidden = entry.name.startswith(".")
                # For a link to itself, os.DirEntry raises an error, and Path answers no.
                item = path if entry.is_symlink() else entry
                if item.is_dir():
                    target = path.resolve()
                    leads_up = here.resolve().is_relative_to(target)
                    if not (hidden or leads_up or target in seen):
                        to_search.append(path)
                        seen.add(target)
                elif item.is_file() and not hidden and path.suffix.lower() in EXTENSIONS:
                    images.append(path)
                else:
                    ignored += 1
    except OSError as error:
        raise ImageError(f"{error.filename}: {error.strerror}") from error
    return sorted(images), ignored


class LabeledImages(Dataset[tuple[Tensor | ImageError, int]]):
    """A data set of the images in `folder/<class>/` and its subfolders.

    Args:
        folder: a folder with one folder of images for each class.
        transform: `train_transform` or `val_transform`.
        size: height and width of the crops in pixels.

    Attributes:
        classes: the names of the class folders, sorted. Names that begin with a dot are left out.
        samples: the path of each image and its label, which is an index into `classes`.
        ignored: the number of files that are not images.

    Raises:
        ImageError: the folder cannot be read, has no class folders, or one of them has no images.
    """

    def __init__(self, folder: Path, transform: Callable[[int], v2.Compose], size: int) -> None:
        self.transform = transform(size)
        self.size = size
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise ImageError(f"{folder}: {error.strerror}") from error
        folders = sorted(entry.name for entry in entries if Path(entry).is_dir())
        self.classes = [name for name in folders if not name.startswith(".")]
        if not self.classes:
            raise ImageError(f"{folder}: no class folders (one folder of images for each class)")

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
        """Return a crop, uint8 (3, size, size), and its label.

        If the file cannot be used, the error is returned in place of the crop.
        """
        path, label = self.samples[index]
        try:
            return read_image(path, self.transform, self.size), label
        except ImageError as error:
            return error, label

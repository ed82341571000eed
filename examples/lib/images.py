"""Find image files, read them, and crop them to pixels: NumPy arrays, uint8 (3, H, W)."""

import contextlib
import functools
import io
import os
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from examples.lib.command import ImageError

# The formats that are read: pixels only, by Pillow's own decoders, and HEIF by pillow-heif. Pillow
# knows more. For EPS, it starts Ghostscript, which runs the program in the file.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "HEIF", "AVIF", "JPEG2000", "PPM", "ICO"),
    *("PSD", "QOI", "PCX", "SGI", "DDS", "TGA"),  # TGA last: its files have no fixed first bytes
)
MAX_ASPECT_RATIO = 100  # of a longer image, a square crop shows less than 1 %

# An image takes 10 bytes per pixel while it is read. Larger ones are read one after another.
LARGE = 16_000_000  # pixels
LARGE_IMAGE = threading.Lock()


@functools.cache
def set_up_pillow() -> list[str]:
    """Prepare Pillow in this process. Return those of `FORMATS` that can be read here."""
    # Pillow warns about oddities in files that it can read. For others, it raises an error.
    warnings.filterwarnings("ignore", module="PIL")
    with contextlib.suppress(ImportError):  # optional: without it, HEIC photos are not read
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


# From a file to an image


def open_image(path: Path, min_size: int | None = None) -> Image.Image:
    """Read a file as an RGB image, upright and with transparent parts in white.

    In each process, only one image with more than `LARGE` pixels is decoded at a time.

    Args:
        path: a file in one of the `FORMATS`.
        min_size: allows a JPEG to be decoded, faster, at 1/2, 1/4 or 1/8 of its width and height.
            The smallest of these sizes is used at which both sides have at least `min_size` pixels.
            An image that still has more than `LARGE` pixels is reduced in the same way.

    Raises:
        ImageError: the file cannot be read or decoded, has more pixels than Pillow allows, has one
            side more than `MAX_ASPECT_RATIO` times as long as the other, is transparent everywhere,
            is a raw photograph, or has gray values whose scale is unknown.
    """
    try:
        try:
            return decode(path, min_size)
        except Exception:
            png = png_without_text(path)
            if png is None:
                raise
            return decode(png, min_size)
    except Exception as error:  # for damaged files, decoders raise many kinds of exceptions
        raise ImageError(f"{path}: {describe_error(error)}") from error


def decode(file: Path | io.BytesIO, min_size: int | None) -> Image.Image:
    """Return the image in a file, as `open_image` does."""
    with Image.open(file, formats=set_up_pillow()) as image, contextlib.ExitStack() as locks:
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels, too long for a square crop")
        if isinstance(image, TiffImageFile):
            check_first_page(image)
        if min_size is not None:
            image.draft(None, (min_size, min_size))

        is_large = image.width * image.height > LARGE
        if is_large:
            locks.enter_context(LARGE_IMAGE)
        image.load()
        with contextlib.suppress(Exception):  # ignore broken EXIF data
            ImageOps.exif_transpose(image, in_place=True)
        rgb = to_rgb(image)
        if is_large and min_size is not None:
            rgb = rgb.reduce(max(1, min(rgb.size) // min_size))
        return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in 8 bits per color, with transparent parts in white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_8_bit_gray(image).convert("RGB")
    if image.has_transparency_data:
        return put_on_white(image)
    return image.convert("RGB")


def check_first_page(image: TiffImageFile) -> None:
    """Raise an error if Pillow would show only the small preview in a raw photograph.

    Raw photographs are TIFF files: DNG, NEF, ARW and others.
    """
    new_subfile_type, dng_version = 254, 50706  # the numbers of two tags
    if image.tag_v2.get(new_subfile_type, 0) & 1 or dng_version in image.tag_v2:
        raise ValueError("a raw photograph, of which only a preview can be read: save it as a JPEG")


def put_on_white(image: Image.Image) -> Image.Image:
    """Return an image with transparent parts as an RGB image, with these parts in white."""
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    ranges: Any = image.getextrema()  # (lowest, highest) of each channel
    if ranges[3] == (0, 0):  # some programs leave alpha empty
        if all(low == high for low, high in ranges):
            raise ValueError("transparent everywhere")
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def png_without_text(path: Path) -> io.BytesIO | None:
    """Return a PNG file without its texts and color profile. None: it is not a PNG file.

    Pillow refuses a file in which one of them is long or has a wrong checksum.
    """
    signature = b"\x89PNG\r\n\x1a\n"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(len(signature)) != signature:
            return None
    data = path.read_bytes()
    kept, position = [signature], len(signature)
    while position < len(data):  # a chunk: length of the content, kind, content, checksum
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[position:end])
        position = end
    return io.BytesIO(b"".join(kept))


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
        return f"not an image in a format that is read: {', '.join(set_up_pillow())}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# From an image to pixels


def center_crop(image: Image.Image, size: int, resize_size: int) -> np.ndarray:
    """Resize the shorter side of an image, and return its center crop, uint8 (3, size, size).

    With sizes of 224 and 256, it is the crop of torchvision's published accuracies: the box is that
    of `Resize` and `CenterCrop`, which round to whole pixels. Values differ by at most 1.
    """
    shorter = min(image.size)
    width, height = (int(resize_size * side / shorter) for side in image.size)  # after Resize
    left, top = round((width - size) / 2), round((height - size) / 2)
    x, y = image.width / width, image.height / height  # pixels of the image in one after Resize
    return resized_crop(image, (left * x, top * y, (left + size) * x, (top + size) * y), size)


def resized_crop(
    image: Image.Image, box: tuple[float, float, float, float], size: int
) -> np.ndarray:
    """Return the box (left, top, right, bottom) of an image, resized to uint8 (3, size, size).

    Only the pixels of the box are computed. They are averaged where the crop is smaller than the
    box (antialiasing).
    """
    crop = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(crop).transpose(2, 0, 1).copy()


def read_image(path: Path, size: int, resize_size: int) -> np.ndarray:
    """Read a file and return its center crop, uint8 (3, size, size).

    A large JPEG is decoded at a reduced size, but both sides keep at least twice the pixels of
    `resize_size`. A photograph of 12 megapixels then takes a third of the time, and its normalized
    values change by about 0.004 on average.

    Raises:
        ImageError: the file cannot be used.
    """
    return center_crop(open_image(path, min_size=2 * resize_size), size, resize_size)


# Folders of images


def find_images(folder: Path, on_error: Callable[[ImageError], None]) -> tuple[list[Path], int]:
    """Find the images in a folder and in its subfolders.

    Subfolders whose names begin with a dot are left out. If several links lead to a folder, it is
    searched once. Links to a folder above are not followed.

    Args:
        folder: where to search.
        on_error: is called for each folder that cannot be read. If it returns, the search goes on.

    Returns:
        The sorted paths of the images, and the number of other files.
    """
    images: list[Path] = []
    ignored = 0
    seen = {folder.resolve(), *folder.resolve().parents}
    walk = os.walk(folder, onerror=lambda error: on_error(folder_error(error)), followlinks=True)
    for here, subfolders, files in walk:
        visible = sorted(name for name in subfolders if not name.startswith("."))
        subfolders.clear()  # os.walk searches those that are put back
        for name in visible:
            target = Path(here, name).resolve()
            if target not in seen:
                seen.add(target)
                subfolders.append(name)

        found = [path for name in files if is_image(path := Path(here, name))]
        images += found
        ignored += len(files) - len(found)
    return sorted(images), ignored


def refuse(error: ImageError) -> NoReturn:
    """Raise the error: for `find_images` where every folder must be sound."""
    raise error


def folder_error(error: OSError) -> ImageError:
    return ImageError(f"{error.filename}: {error.strerror}")


def is_image(path: Path) -> bool:
    """Return whether a path is a file with an extension of the `FORMATS`, and not hidden."""
    if path.suffix.lower() not in extensions() or path.name.startswith("."):
        return False
    try:
        return stat.S_ISREG(path.stat().st_mode)  # not a named pipe
    except PermissionError:
        return True  # it will be reported when it is read
    except OSError:
        return False  # a link to nowhere


@functools.cache
def extensions() -> set[str]:
    """Return the extensions of the `FORMATS`, in lower case."""
    formats = {*set_up_pillow(), "MPO"}  # MPO: a JPEG with more pictures behind it
    return {
        extension for extension, name in Image.registered_extensions().items() if name in formats
    }

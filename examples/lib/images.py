"""Find image files, read them, and crop them to pixels: NumPy arrays, uint8 (3, H, W)."""

import contextlib
import functools
import io
import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)

from examples.lib.command import ImageError

# The formats that are read: those of photographs and data sets, by Pillow's own decoders, and HEIF
# by pillow-heif. Pillow knows more. For EPS, it starts Ghostscript, which runs the program in the
# file. AVIF comes before HEIF: pillow-heif takes such files too, and cannot read all of them.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PPM")
MAX_ASPECT_RATIO = 100  # of a longer image, a square crop shows less than 1 %

NEW_SUBFILE_TYPE, DNG_VERSION = 254, 50706  # the numbers of two tags of TIFF

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
    # A long text or profile is no reason to refuse a picture.
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
    return [name for name in FORMATS if name in Image.OPEN]


# From a file to an image


def open_image(path: Path, min_size: int | None = None) -> Image.Image:
    """Read a file as a browser shows it on a white page: the first frame, upright, in sRGB.

    In each process, only one image with more than `LARGE` pixels is decoded at a time.

    Args:
        path: a file in one of the `FORMATS`.
        min_size: allows a JPEG to be decoded, faster, at 1/2, 1/4 or 1/8 of its width and height.
            The smallest of these sizes is used at which both sides have at least `min_size` pixels.
            An image that still has more than `LARGE` pixels is reduced in the same way.

    Raises:
        ImageError: the file cannot be read or decoded, has more pixels than Pillow allows, has one
            side more than `MAX_ASPECT_RATIO` times as long as the other, is transparent everywhere,
            is a raw photograph, has gray values whose scale is unknown, or is of a kind that Pillow
            reads otherwise than people see it.
    """
    try:
        return decode(path, min_size)
    except Exception as error:  # for damaged files, decoders raise many kinds of exceptions
        raise ImageError(f"{path}: {describe_error(error)}") from error


def decode(path: Path, min_size: int | None) -> Image.Image:
    """Return the image in a file, as `open_image` does."""
    with contextlib.ExitStack() as stack:
        # Not the path: Pillow then maps an uncompressed TIFF into memory, with its sides exchanged.
        file = stack.enter_context(path.open("rb"))
        image = stack.enter_context(Image.open(file, formats=set_up_pillow()))
        check_meaning(image)
        if isinstance(image, PngImageFile):
            scale_transparent_color(image)
        if isinstance(image, JpegImageFile) and min_size is not None:
            image.draft(None, (min_size, min_size))  # a HEIC would become its thumbnail

        is_large = image.width * image.height > LARGE
        if is_large:
            stack.enter_context(LARGE_IMAGE)
        image.load()
        with contextlib.suppress(Exception):  # ignore broken EXIF data
            ImageOps.exif_transpose(image, in_place=True)
        rgb = to_rgb(image)
        if is_large and min_size is not None:
            rgb = rgb.reduce(max(1, min(rgb.size) // min_size))
        return rgb


def check_meaning(image: Image.Image) -> None:
    """Raise `ValueError` if the picture that Pillow would show is not what a person sees."""
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels, too long for a square crop")
    if isinstance(image, GifImageFile) and image.tile[0].extents != (0, 0, *image.size):
        raise ValueError("a GIF whose first frame is only a part of the picture: save it as a PNG")
    if not isinstance(image, TiffImageFile):
        return
    tags = image.tag_v2
    # Raw photographs are TIFF files: DNG, NEF, ARW and others. Pillow shows a small preview.
    if tags.get(NEW_SUBFILE_TYPE, 0) & 1 or DNG_VERSION in tags:
        raise ValueError("a raw photograph, of which only a preview can be read: save it as a JPEG")
    if COLORMAP in tags and max(tags[COLORMAP]) < 256:
        raise ValueError("a TIFF with a color map of 8 bits: save it as a PNG")
    is_raw = image.tile[0].codec_name == "raw"  # not compressed
    if is_raw and tags.get(PLANAR_CONFIGURATION) == 2 and max(tags.get(BITSPERSAMPLE, [1])) > 8:
        raise ValueError("a TIFF with a plane of 16 bits for each color: save it as a PNG")


def scale_transparent_color(image: PngImageFile) -> None:
    """Give the transparent color the depth that the pixels get when they are read: 8 bits."""
    color = image.info.get("transparency")
    depth = re.search(r"\d+", str(image.tile[0].args))  # such as "L;4" or "RGB;16B"
    bits = int(depth[0]) if depth else 8
    if image.mode == "L" and isinstance(color, int):
        image.info["transparency"] = color * 255 // (2**bits - 1)
    if image.mode == "RGB" and bits == 16 and color is not None:
        image.info["transparency"] = tuple(value >> 8 for value in color)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in 8 bits per color of sRGB, with transparent parts in white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_8_bit_gray(image).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.mode == "La":  # gray that was multiplied by its alpha
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    if profile:
        image = convert_to_srgb(image, profile)
    return put_on_white(image) if image.mode == "RGBA" else image.convert("RGB")


def convert_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Return an image, of which the colors have this profile (ICC), in sRGB.

    A profile that is damaged or for another kind of image is ignored, as in browsers.
    """
    from PIL import ImageCms  # here, because few images need it

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode=mode,
        )
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted or image


def put_on_white(image: Image.Image) -> Image.Image:
    """Return an RGBA image as an RGB image, with transparent parts in white."""
    ranges: Any = image.getextrema()  # (lowest, highest) of each channel
    if ranges[3] == (0, 0):  # some programs leave alpha empty
        if all(low == high for low, high in ranges):
            raise ValueError("transparent everywhere")
        return image.convert("RGB")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def to_8_bit_gray(image: Image.Image) -> Image.Image:
    """Scale a gray image of 16 or more bits per pixel (mode I;16, I;16B, I or F) to 8 bits.

    Raises:
        ValueError: the value of white is unknown, or some values are outside of 0 to white.
    """
    values = np.asarray(image).astype("float32")
    transparent = values == image.info.get("transparency")
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
    values[transparent] = white
    return Image.fromarray(np.rint(values * (255 / white)).astype("uint8"))


def describe_error(error: Exception) -> str:
    """Return the reason why a file cannot be used, in one line."""
    if isinstance(error, UnidentifiedImageError):
        formats = ", ".join(set_up_pillow())
        return f"not an image that is read ({formats}), or its header is damaged or unusual"
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

    Subfolders that `is_hidden` names are left out. If several links lead to a folder, it is
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

    def search(here: Path) -> None:
        nonlocal ignored
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            on_error(folder_error(error))
            return
        for entry in entries:
            path = here / entry.name
            kind = kind_of(entry)
            if kind == "file" and is_image(path):
                images.append(path)
            elif kind != "folder":
                ignored += 1
            elif not is_hidden(entry.name) and (target := path.resolve()) not in seen:
                seen.add(target)
                search(path)

    search(folder)
    return sorted(images), ignored


def kind_of(entry: "os.DirEntry[str]") -> Literal["file", "folder", "other"]:
    """Return what an entry is, or where a link leads. Only links cost a call for each of them."""
    try:
        if entry.is_dir():
            return "folder"
        return "file" if entry.is_file() else "other"  # other: a named pipe, a link to nowhere
    except PermissionError:
        return "file"  # it will be reported when it is read
    except OSError:
        return "other"  # a link in a circle


def is_hidden(name: str) -> bool:
    """Return whether a folder of this name holds nothing that a person has put there.

    Synology's drives keep thumbnails in @eaDir, and macOS's archives other files in __MACOSX.
    """
    return name.startswith(".") or name in ("@eaDir", "__MACOSX")


def refuse(error: ImageError) -> NoReturn:
    """Raise the error: for `find_images` where every folder must be sound."""
    raise error


def folder_error(error: OSError) -> ImageError:
    return ImageError(f"{error.filename}: {error.strerror}")


def is_image(path: Path) -> bool:
    """Return whether the name of a file has an extension of the `FORMATS`, and is not hidden."""
    return path.suffix.lower() in extensions() and not path.name.startswith(".")


@functools.cache
def extensions() -> set[str]:
    """Return the extensions of the `FORMATS`, in lower case."""
    formats = {*set_up_pillow(), "MPO"}  # MPO: a JPEG with more pictures behind it
    return {
        extension for extension, name in Image.registered_extensions().items() if name in formats
    }

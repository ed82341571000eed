"""Photographs from files, as the networks were trained to see them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError


class ImageError(Exception):
    """A file that cannot be classified; the message is one line that says why."""


def open_image(path: Path) -> Image.Image:
    """Return the picture in `path` as a person sees it: upright, in RGB, on white where clear.

    Raises:
        ImageError: the file cannot be read or decoded whole, or is too large to be decoded.
    """
    if path.is_dir():
        raise ImageError("a folder with no files in it")
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
    except UnidentifiedImageError as error:
        raise ImageError("not an image in a format that Pillow reads") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from error
    except Exception as error:  # decoders raise all sorts at damaged files
        raise ImageError(f"damaged: {error}") from error

"""Images from files."""

import click
from PIL import Image, ImageOps


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
                upright = upright.point(lambda value: value / 256).convert("L")
            if upright.has_transparency_data:
                white = Image.new("RGBA", upright.size, "white")
                upright = Image.alpha_composite(white, upright.convert("RGBA"))
            return upright.convert("RGB")
    except Exception as error:  # decoders raise all sorts at damaged files
        raise ImageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error

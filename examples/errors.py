"""Errors that a user can mend. Each message is one line that is safe to print."""

import re

# Line breaks and other control characters, characters that change the direction of the text, and
# bytes of a file name that are not valid text (surrogates).
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape(text: str) -> str:
    r"""Write each character that could break a line or drive a terminal as Python does: "\n"."""
    return UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class UserError(Exception):
    """The command cannot do what it was asked to. The message is one line and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message))


class ImageError(UserError):
    """A file or folder of images cannot be used. The message begins with its path."""


class WeightsError(UserError):
    """Weights cannot be used."""

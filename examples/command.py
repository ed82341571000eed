"""What the commands share: errors that a user can mend, options, and how a command ends."""

import atexit
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import tyro

from examples.memory import reuse_memory

Model = Literal["alexnet", "resnet18"]

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


class ClosedPipeError(UserError):
    """The program that reads the results, such as head, has ended: it wants no more."""


def require(condition: object, message: str) -> None:
    """Raise `UserError` unless the condition is true."""
    if not condition:
        raise UserError(message)


def hint(metavar: str, text: str) -> Any:
    """Show the option as `--option METAVAR`, with the text in parentheses after its description.

    By default, tyro shows the type and the default, which is None for such an option.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({text})")


def print_result(text: str) -> None:
    """Print a part of the results on standard output at once.

    Raises:
        UserError: standard output is closed or full, or the program that reads it has ended.
    """
    require(sys.stdout is not None, "cannot write the results: standard output is closed")
    try:
        print(text, flush=True)
    except OSError as error:
        # Python writes what is left at its end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        kind = ClosedPipeError if isinstance(error, BrokenPipeError) else UserError
        raise kind(f"cannot write the results: {error.strerror}") from error


def run(main: Callable[[list[str]], int | None], when_interrupted: str = "interrupted") -> NoReturn:
    """Run a command with the arguments of this process, and end the process.

    A `UserError` becomes one line on standard error and the status 1. After Ctrl-C or SIGTERM, the
    process ends by SIGINT, so that a loop of a shell over several commands ends too. What nobody
    foresaw is a traceback.

    Args:
        main: takes the arguments and returns the status of the process. None: 0.
        when_interrupted: the line that is printed after Ctrl-C, by rank 0 of several processes.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    reuse_memory()
    if sys.stdout is not None:
        # The name of a file may contain bytes that are not valid text.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        sys.exit(main(sys.argv[1:]))
    except ClosedPipeError:
        sys.exit(1)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)) == 0:
            print(when_interrupted, file=sys.stderr)
        end_by_sigint()


def end_by_sigint() -> NoReturn:
    """End this process as Ctrl-C ends a program that does not catch it.

    The frames of the interrupted functions must be alive: PyTorch aborts if a file that torch.save
    was writing is closed before the end.
    """
    atexit._run_exitfuncs()  # ends reading processes, for example: the signal would leave them
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("SIGINT did not end the process")

"""What the commands share: their options, errors that a user can mend, and how a command ends."""

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

Model = Literal["alexnet", "resnet18"]
Precision = Literal["float32", "bfloat16", "float16"]
Options = TypeVar("Options")

# Packages that only some options need: without one, the command says how to install it.
OPTIONAL_PACKAGES = {
    *("torch", "torchvision", "safetensors", "torchao", "matplotlib", "pandas"),
    *("openvino", "nncf", "onnx", "onnxscript", "onnxruntime"),
}

# Line breaks and other control characters, characters that change the direction of the text, and
# bytes of a file name that are not valid text (surrogates).
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


# Errors


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


# Options


def hint(metavar: str, text: str) -> Any:
    """Show the option as `--option METAVAR`, with the text in parentheses after its description.

    By default, tyro shows the type and the default, which is None for such an option.
    """
    import tyro  # here, because the other modules of this folder are used without it, too

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({text})")


def parse(
    command: str, options: type[Options], arguments: list[str], default: Options | None = None
) -> Options:
    """Return the options of `python -m examples.COMMAND`, and end the process if they are wrong.

    Args:
        command: its name.
        options: a dataclass with one field for each option.
        arguments: what the user typed.
        default: the values of the options that are not given.
    """
    import tyro

    # Of the flags --x and --no-x, there is only that which changes the default. Those of a run that
    # is resumed can be given again.
    flags = () if default else (tyro.conf.FlagCreatePairsOff,)
    parsed: Any = tyro.cli(
        options,
        prog=f"python -m examples.{command}",
        args=arguments,
        default=default or tyro.MISSING_NONPROP,
        config=flags,
    )
    # A shell does not expand the ~ of --out=~/runs.
    paths = {name: value for name, value in vars(parsed).items() if isinstance(value, Path)}
    expanded = {name: path.expanduser() for name, path in paths.items()}
    resolved: Options = dataclasses.replace(parsed, **expanded)
    return resolved


# The process


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
        sys.exit(call(main, sys.argv[1:]))
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", 0)) == 0:
            print(when_interrupted, file=sys.stderr)
        end_by_sigint()


def call(main: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """Return the status of a command. An error that the user can mend is one line and status 1."""
    try:
        return main(arguments) or 0
    except ClosedPipeError:
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL_PACKAGES:
            raise
        print(f"error: this needs another package: pip install {package}", file=sys.stderr)
    return 1


def end_by_sigint() -> NoReturn:
    """End this process as Ctrl-C ends a program that does not catch it.

    The frames of the interrupted functions must be alive: PyTorch aborts if a file that torch.save
    was writing is closed before the end.
    """
    atexit._run_exitfuncs()  # ends reading processes, for example: the signal would leave them
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("SIGINT did not end the process")


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


def reuse_memory() -> None:
    """Make this process keep and reuse freed memory. This does nothing without glibc.

    By default, glibc returns the memory of large tensors to the operating system. The system fills
    each page with zeros before the next tensor gets it, which takes time.
    """
    m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8  # of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # the C library is not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, -1)  # never return free memory at the end of the heap
        mallopt(m_mmap_max, 0)  # put large tensors on the heap too
        mallopt(m_arena_max, 1)  # one heap for all threads: what one frees, another can reuse


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import packages in this block faster: what they allocate stays, and is never searched."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()

"""Run a command of the examples in this process, as a user runs it."""

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass

from examples.lib import command


@dataclass
class Result:
    status: int
    stdout: str
    stderr: str


def call(main: Callable[[list[str]], int | None], *arguments: object) -> Result:
    """Return what the command printed and the status it ended with."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status = command.call(main, [str(argument) for argument in arguments])
        except SystemExit as stop:  # of tyro
            status = stop.code
    return Result(status, stdout.getvalue(), stderr.getvalue())


@contextlib.contextmanager
def ordinary_user():
    """Take the rights of the superuser away, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def refusal(main: Callable[[list[str]], int | None], *arguments: object) -> str:
    """Return the one line on standard error with which the command refuses its arguments."""
    result = call(main, *arguments)
    assert result.status == 1, result
    assert result.stderr.startswith("error: "), result
    assert result.stderr.count("\n") == 1, result
    return result.stderr

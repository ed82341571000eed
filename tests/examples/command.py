"""Run a command of the examples in this process, as a user runs it."""

import contextlib
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Result:
    status: int
    stdout: str
    stderr: str


def call(main: Callable[[list[str]], None], *arguments: object) -> Result:
    """Return what the command printed and the status it ended with."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status = 0
    on_sigterm = signal.getsignal(signal.SIGTERM)  # which examples.train replaces
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None  # Ctrl-C stops the tests
            # With a text, Python prints it and the status is 1.
            if isinstance(stop.code, str):
                print(stop.code, file=stderr)
            status = 1 if isinstance(stop.code, str) else stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
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


def refusal(main: Callable[[list[str]], None], *arguments: object) -> str:
    """Return the one line on standard error with which the command refuses its arguments."""
    result = call(main, *arguments)
    assert result.status == 1, result
    assert result.stderr.startswith("error: "), result
    assert result.stderr.count("\n") == 1, result
    return result.stderr

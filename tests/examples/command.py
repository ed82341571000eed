"""Run a command of the examples in this process."""

import click
from click.testing import CliRunner


def call(command: click.Command, *arguments: object) -> tuple[int, str, str]:
    """Return its exit status, what it printed and its errors."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def refusal(command: click.Command, *arguments: object) -> str:
    """Return the one line with which it refuses the arguments."""
    status, stdout, stderr = call(command, *arguments)
    assert (status, stdout, stderr.count("\n")) == (1, "", 1), stderr
    return stderr

"""`--help` of each command."""

import importlib

import pytest

from tests.examples.command import call


@pytest.mark.parametrize(
    "command, words",
    [
        ("train", "default: proportional to --batch-size"),
        ("evaluate", "required without --pretrained"),
        ("predict", "default: the official ImageNet weights"),
        ("export", "default: the official ImageNet weights"),
        ("benchmark", "--seconds"),
    ],
)
def test_help_names_the_command_its_options_and_their_defaults(command, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = call(importlib.import_module(f"examples.{command}").main, "--help")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(f"usage: python -m examples.{command} ")
    assert words in result.stdout

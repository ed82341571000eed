"""What `--help` shows for an option whose default is not a constant."""

from typing import Any

import tyro


def hint(metavar: str, text: str) -> Any:
    """Show the option as `--option METAVAR`, with the text in parentheses after its description.

    By default, tyro shows the type and the default, which is None for such an option.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({text})")

"""What the options of the commands share."""

from typing import Any, Literal

import tyro

Model = Literal["alexnet", "resnet18"]


def hint(metavar: str, text: str) -> Any:
    """Show the option as `--option METAVAR`, with the text in parentheses after its description.

    By default, tyro shows the type and the default, which is None for such an option.
    """
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"({text})")

"""The recipes of README.md, as the code that they are."""

from __future__ import annotations

import re
from pathlib import Path

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTION = TEXT.split("## Recipes\n")[1].split("\n## ")[0]
PREAMBLE, *RECIPES = (
    (part.partition("\n")[0], "".join(re.findall(r"```python\n(.*?)```", part, re.DOTALL)))
    for part in SECTION.split("\n### ")
)
HEADINGS = [heading for heading, _ in RECIPES]


def recipe(heading: str, name: str) -> str:
    """Return the code under a heading ("" for the preamble) as it is for the network `name`."""
    code = dict(RECIPES)[heading] if heading else PREAMBLE[1]
    if name == "alexnet":
        code = re.sub(r"^.*\n# AlexNet: (.*)$", r"\1", code, flags=re.MULTILINE)
        code = code.replace("resnet18", "alexnet").replace("ResNet18", "AlexNet")
    return re.sub(r"^# AlexNet: .*\n", "", code, flags=re.MULTILINE)

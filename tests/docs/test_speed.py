"""The answer at the top of docs/speed.md has the figures of its tables."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
ANSWER, REST = PAGE.split("\n### ", 1)
FIGURES = r"\d+\.\d\d / \d+\.\d\d / \d+\.\d\d"


def test_every_figure_of_the_answer_is_that_of_a_row():
    rows = [
        " / ".join(re.findall(r"[\d.]+, (\d+\.\d\d)", line))
        for line in REST.splitlines()
        if line.startswith("|")
    ]
    figures = re.findall(FIGURES, ANSWER)
    assert len(figures) >= 8
    assert [figure for figure in figures if figure not in rows] == []

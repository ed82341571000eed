"""The answer at the top of docs/speed.md is that of its tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "speed.md").read_text(encoding="utf-8")
ANSWER, *REST = PAGE.split("\n\n**")


@pytest.mark.parametrize("column, model", [(3, "ResNet-18"), (4, "AlexNet")])
def test_each_figure_of_the_answer_is_that_of_a_row(column, model):
    tables = [part for part in REST if part.startswith(f"{model}**")]
    rows = [re.findall(r"\d, (\d\.\d\d)", line) for part in tables for line in part.splitlines()]
    cells = [line.split("|")[column].strip() for line in ANSWER.splitlines() if " / " in line]
    figures = [cell.split(" / ") for cell in cells if re.match(r"\d", cell)]
    assert len(figures) == 4
    assert all(figure in rows for figure in figures)

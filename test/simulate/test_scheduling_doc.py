"""docs/scheduling_design.md says what the code does: the worked example."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lightllm.router.admission.usage import peak

DOC = Path(__file__).parents[2] / "docs" / "scheduling_design.md"


def worked_example() -> list[list[int]]:
    """Rows of the table: i, held, to come, held so far, tokens at that time."""
    text = DOC.read_text(encoding="utf-8")
    section = text[text.index("## A worked example") :]
    section = section[: section.index("\n## ", 1)]
    return [
        [int(cell) for cell in re.findall(r"\d+", line)]
        for line in section.splitlines()
        if re.match(r"\| \d", line)
    ]


def test_the_worked_example_is_what_the_formula_gives():
    rows = worked_example()
    assert len(rows) == 5
    total = 0
    for number, (i, held, to_come, so_far, *_, tokens) in enumerate(rows, 1):
        total += held
        assert i == number
        assert so_far == total
        assert tokens == to_come * i + so_far
    assert [row[2] for row in rows] == sorted((row[2] for row in rows), reverse=True)


def test_the_worked_example_has_the_peak_that_the_code_finds():
    rows = np.array([row[1:3] for row in worked_example()])
    assert peak(rows[:, 0], rows[:, 1]) == 31 == max(row[-1] for row in worked_example())


def test_one_more_request_changes_the_peak_as_the_text_says():
    text = DOC.read_text(encoding="utf-8")
    held, to_come, new = (
        int(x)
        for x in re.search(
            r"A sixth request \((\d+) held, (\d+) to come\).*?peak of (\d+)", text, re.S
        ).groups()
    )
    rows = [row[1:3] for row in worked_example()] + [[held, to_come]]
    array = np.array(rows)
    assert peak(array[:, 0], array[:, 1]) == new

"""The figures of the last training run in the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo_model.evaluation import Score

BEGIN, END = (
    "<!-- figures of the last training run: begin -->",
    "<!-- figures of the last training run: end -->",
)


def score_table(scores: dict[str, Score]) -> list[str]:
    """A Markdown table of exact-match scores, one line a category."""
    lines = ["| category | right | of | |", "|---|---:|---:|---:|"]
    for category, score in scores.items():
        lines.append(
            f"| {category} | {score.right} | {score.asked} | {100 * score.right / score.asked:.0f} % |"
        )
    return lines


def write_report(page: Path, facts: list[str], scores: dict[str, Score]) -> None:
    """Replaces what stands between the two marks of `page`; raises ValueError when a mark is missing."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the marks {BEGIN!r} and {END!r}")
    block = "\n".join([*facts, "", *score_table(scores)])
    page.write_text(f"{before}{BEGIN}\n\n{block}\n\n{END}{after}")

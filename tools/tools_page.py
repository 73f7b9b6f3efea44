"""docs/tools_and_reasoning.md: its tables of the families of models that the parsers know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightllm.parsers.families import FAMILIES
from lightllm.parsers.reasoning import REASONINGS
from lightllm.parsers.writing import WrittenCall, write_calls

ROOT = Path(__file__).resolve().parent.parent
FAMILIES_TABLE = (
    "<!-- The tables below are made by tools/make_docs.py from lightllm/parsers/families.py and reasoning.py. -->",
    "<!-- End of the tables. -->",
)


def tools_and_reasoning_page() -> str:
    """The page as it is written by hand, but for the tables of families."""
    written = (ROOT / "docs/tools_and_reasoning.md").read_text(encoding="utf-8")
    before, _, rest = written.partition(FAMILIES_TABLE[0])
    after = rest.partition(FAMILIES_TABLE[1])[2]
    call = WrittenCall("get_weather", {"city": "Paris"})
    lines = [
        FAMILIES_TABLE[0],
        "",
        "| `--tool_call_parser` | also called | models | what a call looks like |",
        "|---|---|---|---|",
        *(
            f"| `{family.name}` | {_names(family.names)} | {family.models} | {_code(write_calls(family, [call]))} |"
            for family in sorted(FAMILIES, key=lambda family: family.name)
        ),
        "",
        "## Reasoning",
        "",
        "| `--reasoning_parser` | also called | models | begins | ends |",
        "|---|---|---|---|---|",
        *(
            f"| `{one.name}` | {_names(one.names)} | {one.models} | {_marks(one.begin)} | {_marks(one.end)} |"
            for one in sorted(REASONINGS, key=lambda one: one.name)
        ),
        "",
        FAMILIES_TABLE[1],
    ]
    return before + "\n".join(lines) + after


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _marks(marks: Sequence[str]) -> str:
    return " or ".join(map(_code, marks)) or "channel `analysis`"


def _code(text: str) -> str:
    """As code within a table; a line break as it is written in strings."""
    text = _escaped(text.replace("\n", "\\n"))
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")

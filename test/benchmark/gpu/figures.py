"""What the report is made of: a figure with its limit, the section it belongs to, a table for people."""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Figure:
    name: str
    value: float
    unit: str
    limit: float | None = None
    """What the hardware allows, in the same unit."""
    limit_from: str = ""
    """How the limit follows from measured rates."""
    aim: float | None = None
    """Share of the limit (or, without one, the value) that is wanted."""
    lower_is_better: bool = False
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> float | None:
        """Share of the limit."""
        if not self.limit or not self.value:
            return None
        return self.limit / self.value if self.lower_is_better else self.value / self.limit


@dataclasses.dataclass
class Section:
    title: str
    figures: list[Figure] = dataclasses.field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


class Report:
    """Runs sections one by one: one that fails is recorded, and the others go on. None begins after the budget is spent."""

    def __init__(self, machine: dict[str, Any], budget: float, out: Path, add: bool = False) -> None:
        """budget: seconds; out: folder of the files, written anew after every section, also one that is interrupted; add:
        what they hold of other sections is kept."""
        self.machine = machine
        self.sections: list[Section] = []
        self._deadline = time.monotonic() + budget
        self._out = out
        self._earlier = self._read() if add else []

    def run(self, title: str, work: Callable[[], Iterable[Figure]]) -> Section:
        """What `work` has yielded is kept, whatever becomes of the rest of it."""
        section = Section(title)
        self.sections.append(section)
        started = time.monotonic()
        if started >= self._deadline:
            section.error = "not run: the time was up"
        else:
            print(f"== {title}", flush=True)
            try:
                for figure in work():
                    section.figures.append(figure)
                    print("  " + line(figure), flush=True)
            except Exception as error:  # a section that fails must not cost the others the machine's time
                traceback.print_exc()
                section.error = f"{type(error).__name__}: {error}"
            except KeyboardInterrupt:
                section.error = "interrupted"
                self.write()
                raise
        section.seconds = time.monotonic() - started
        self.write()
        return section

    def figures(self, title: str) -> list[Figure]:
        """Of a section that the files hold."""
        return [figure for section in self._written() if section.title == title for figure in section.figures]

    def read_again(self) -> None:
        """Another process has added to the files."""
        self._earlier = self._read()

    def mark(self, title: str, error: str) -> None:
        """Writes that a section's process failed, beside what it had measured."""
        for section in self._earlier:
            if section.title == title:
                section.error = section.error or error
                break
        else:
            self._earlier.append(Section(title, error=error))
        self.write()

    def _file(self, suffix: str) -> Path:
        return self._out / f"{self.machine['device'].replace(' ', '_')}.{suffix}"

    def _read(self) -> list[Section]:
        if not self._file("json").exists():
            return []
        sections = json.loads(self._file("json").read_text())["sections"]
        return [Section(**{**s, "figures": [Figure(**figure) for figure in s["figures"]]}) for s in sections]

    def _written(self) -> list[Section]:
        """A section that did not get its turn does not take the place of an earlier one."""
        earlier = {section.title: section for section in self._earlier}
        own = {s.title: s for s in self.sections if s.figures or s.title not in earlier}
        return list({**earlier, **own}.values())

    def write(self) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        data = {"machine": self.machine, "sections": [dataclasses.asdict(s) for s in self._written()]}
        for ending, text in (("json", json.dumps(data, indent=1) + "\n"), ("md", self.markdown())):
            new = self._file(f"{ending}.new")
            new.write_text(text)
            new.replace(self._file(ending))  # whole, should the process be killed just now

    def markdown(self) -> str:
        facts = ", ".join(f"{key} {value}" for key, value in self.machine.items() if key != "device")
        lines = [f"# {self.machine['device']}", "", facts + ".", ""]
        for section in self._written():
            lines += [f"## {section.title}", ""]
            if section.error:
                lines += [f"Failed: {section.error}", ""]
            if section.figures:
                lines += [
                    "| figure | measured | limit | reached | wanted | the limit is |",
                    "|---|---|---|---|---|---|",
                ]
                lines += [_row(figure) for figure in section.figures]
                lines.append("")
        return "\n".join(lines)


def line(figure: Figure) -> str:
    reached = "" if figure.reached is None else f", {figure.reached:.0%} of the limit {number(figure.limit)}"
    return f"{figure.name}: {number(figure.value)} {figure.unit}{reached}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _row(figure: Figure) -> str:
    reached = "" if figure.reached is None else f"{figure.reached:.0%}"
    wanted = (
        ""
        if figure.aim is None
        else f"{figure.aim:.0%}"
        if figure.limit
        else f"{'≤' if figure.lower_is_better else '≥'} {number(figure.aim)}"
    )
    limit = f"{number(figure.limit)} {figure.unit}" if figure.limit else ""
    cells = [figure.name, f"{number(figure.value)} {figure.unit}", limit, reached, wanted, figure.limit_from]
    return "| " + " | ".join(cells) + " |"

"""An answer that is rendered while it streams: blocks that are whole are printed for good, the last one is drawn anew as it
grows. So an answer may be longer than the screen, and what has scrolled away is never drawn again."""

from __future__ import annotations

import re
import time

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_SECONDS = 0.08
"""Between two drawings: more often is more than the eye sees, and rendering is not free."""


class MarkdownStream:
    """A context: `push` what comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._rest = ""
        self._drawn = 0.0

    def __enter__(self) -> MarkdownStream:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """What stands is there for good, also of an answer that was interrupted."""
        self._live.stop()
        if self._rest.strip():
            self._console.print(Markdown(self._rest))
        self._rest = ""

    def push(self, text: str) -> None:
        self._rest += text
        end = end_of_blocks(self._rest)
        if end:
            self._live.update(_Tail(""), refresh=True)
            self._console.print(Markdown(self._rest[:end]))
            self._console.print()
            self._rest = self._rest[end:]
            self._drawn = 0.0
        now = time.monotonic()
        if now - self._drawn >= _SECONDS:
            self._live.update(_Tail(self._rest), refresh=True)
            self._drawn = now


class _Tail:
    """The last lines of a block, as many as the screen has room for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(Markdown(self._text), options.update(height=None), pad=False)
        for line in lines[-max(console.size.height - 2, 1) :]:
            yield from line
            yield Segment.line()


def end_of_blocks(text: str) -> int:
    """Where the last blank line ends that stands between two blocks: not in a code fence, and not before an indented line,
    which belongs to what is above it. 0: nowhere."""
    fence, end, position = "", 0, 0
    after_blank = False
    for line in text.splitlines(keepends=True):
        if after_blank and not fence and line.strip() and not line[0].isspace():
            end = position
        marker = _FENCE.match(line)
        if fence:
            if (
                marker
                and marker[1][0] == fence[0]
                and len(marker[1]) >= len(fence)
                and not line.strip(" \n`~")
            ):
                fence = ""
        elif marker:
            fence = marker[1]
        after_blank = not fence and not line.strip() and line.endswith("\n")
        position += len(line)
    return end

"""The view of a pipe: each line of the input is a message, the answers alone go to the output. Also that of a terminal where
prompt_toolkit and rich are not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress

from lightllm.chat.session import Shown
from lightllm.chat.talkers import Piece
from lightllm.client import visible

INSTALL = "For history, several lines and markdown: pip install 'lightllm[chat]'"


class PlainView:
    def __init__(self, title: str) -> None:
        """title: shown where somebody reads."""
        self._interactive = sys.stdin.isatty()
        if self._interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  (arrow keys and history for `input`)
            print(f"{title}\n!!help lists commands, Ctrl-C stops an answer, Ctrl-D ends.")

    def read(self) -> str | None:
        try:
            return input("> " if self._interactive else "").strip()
        except KeyboardInterrupt:
            print()
            return ""
        except EOFError:
            if self._interactive:
                print()
            return None

    def show(self, pieces: Iterator[Piece], shown: Shown) -> None:
        for piece in pieces:
            # the output is the answer: what led to it is for those who look on
            if piece.kind == "content" or self._interactive:
                output = sys.stdout if piece.kind == "content" else sys.stderr
                print(visible(piece.text) if output.isatty() else piece.text, end="", file=output, flush=True)

    def ended(self, shown: Shown) -> None:
        if shown.text or shown.stopped:
            print(" [stopped]" if shown.stopped else "", flush=True)

    def note(self, text: str) -> None:
        if self._interactive:
            print(text)

    def fail(self, error: Exception) -> None:
        print(visible(str(error)), file=sys.stderr)

"""The view of a terminal: prompt_toolkit reads (history, several lines, completion of commands), rich shows (markdown while it
streams, reasoning dim)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output
from rich.console import Console
from rich.text import Text

from lightllm.chat.markdown import MarkdownStream
from lightllm.chat.session import ALL_COMMANDS, COMMANDS, Shown
from lightllm.chat.talkers import Piece
from lightllm.client import visible

_WELCOME = "Enter sends, Alt-Enter or \\ and Enter begins a new line. !!help lists commands, Ctrl-D ends."


class TerminalView:
    def __init__(
        self,
        title: str,
        keys: Input | None = None,
        output: Output | None = None,
        console: Console | None = None,
    ) -> None:
        """keys, output, console: other ones than those of this process."""
        self._console = console or Console(highlight=False)
        self._prompt: PromptSession[str] = PromptSession(
            history=_history(), auto_suggest=AutoSuggestFromHistory(), completer=_Commands(), multiline=True,
            key_bindings=_keys(), prompt_continuation="  ", input=keys, output=output, complete_while_typing=False,
            reserve_space_for_menu=4,
        )  # fmt: skip
        self._console.print(Text(title, style="bold"))
        self._console.print(Text(_WELCOME, style="dim"))

    def read(self) -> str | None:
        try:
            return self._prompt.prompt("> ").strip()
        except KeyboardInterrupt:  # of a line that was begun
            return ""
        except EOFError:
            return None

    def show(self, pieces: Iterator[Piece], shown: Shown) -> None:
        pieces = (piece._replace(text=visible(piece.text)) for piece in pieces)
        first = next(pieces, None)
        while first is not None and first.kind == "reasoning":
            self._console.print(Text(first.text, style="dim"), end="", soft_wrap=True)
            first = next(pieces, None)
        if shown.reasoning:
            self._console.print("\n")
        if first is None:
            return
        with MarkdownStream(self._console) as stream:
            stream.push(first.text)
            for piece in pieces:  # reasoning between two texts is rare, and is not shown again
                if piece.kind == "content":
                    stream.push(piece.text)

    def ended(self, shown: Shown) -> None:
        figures = "; ".join(filter(None, ["stopped" if shown.stopped else "", shown.figures()]))
        if figures:
            self._console.print(Text(f"[{figures}]", style="dim"))

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="dim"))

    def fail(self, error: Exception) -> None:
        self._console.print(Text(visible(str(error)), style="red"))


class _Commands(Completer):
    """Commands at the beginning, files behind those that take one."""

    def __init__(self) -> None:
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        name, space, rest = text.partition(" ")
        command = COMMANDS.get(name)
        if space and command is not None and command.takes_file:
            yield from self._files.get_completions(Document(rest), complete_event)
        elif not space and text.startswith("!"):
            yield from (Completion(name, -len(text)) for name in ALL_COMMANDS if name.startswith(text))


def _keys() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    # Not Ctrl-J: what is typed while an answer comes passes a terminal that makes that of Enter.
    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> History:
    """Of this user, in the folder for such files; in memory alone where it cannot be written."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    path = Path(base).expanduser() / "lightllm/chat_history"
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        return FileHistory(str(path))
    return InMemoryHistory()

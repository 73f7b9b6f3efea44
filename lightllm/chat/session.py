"""One chat: a line is a message, or a command that begins with `!!`. The same for a terminal and a pipe; a `View` shows it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

from lightllm.chat.attachments import content_of
from lightllm.chat.conversation import Conversation
from lightllm.chat.interrupts import Interrupts
from lightllm.chat.talkers import Piece, Talker
from lightllm.errors import LightLLMError


@dataclasses.dataclass
class Shown:
    """What became of an answer."""

    text: str = ""
    """Without the reasoning, which no later prompt has."""
    reasoning: str = ""
    stopped: bool = False
    tokens: int = 0
    first: float = 0.0
    """Seconds to the first piece."""
    seconds: float = 0.0
    """From the first piece to the last."""

    def figures(self) -> str:
        """ "" where nothing came."""
        if not self.tokens:
            return ""
        rate = (
            f", {(self.tokens - 1) / self.seconds:.1f} a second" if self.seconds and self.tokens > 1 else ""
        )
        return f"{self.tokens} tokens{rate}, the first after {self.first:.2f} s"


class View(Protocol):
    def read(self) -> str | None:
        """The next line or message; None at the end."""

    def show(self, pieces: Iterator[Piece], shown: Shown) -> None:
        """Shows an answer as it comes; `shown` grows with the pieces."""

    def ended(self, shown: Shown) -> None:
        """After the last piece, or the one that an interrupt stopped."""

    def note(self, text: str) -> None:
        """What a command did."""

    def fail(self, error: Exception) -> None: ...


class Session:
    def __init__(self, talker: Talker, view: View, system: str | None = None) -> None:
        self.conversation = Conversation(system)
        self._talker = talker
        self._view = view

    def run(self, end_on_failure: bool = False) -> int:
        """Reads until the input ends, or a command says so. Returns the exit status."""
        while (line := self._view.read()) is not None:
            if line in ("!!exit", "!!quit", "/exit"):
                break
            if not self._take(line) and end_on_failure:
                return 1
        return 0

    def _take(self, line: str) -> bool:
        """Whether it could be done."""
        try:
            if line.startswith("!!") or line == "/reset":
                self._command(line)
            elif line.strip():
                self.conversation.ask(content_of(line))
                return self._answer()
        except (LightLLMError, OSError) as error:
            self._view.fail(error)
            return False
        return True

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        command = COMMANDS.get("!!reset" if name == "/reset" else name)
        if command is None:
            self._view.note(f"There is no {name}. {_listed()}")
        elif command.takes_file and not argument.strip():
            self._view.note(f"{name} needs the name of a file.")
        else:
            command.run(self, argument.strip())

    def _answer(self) -> bool:
        """Without one the question is taken back."""
        shown, pieces = Shown(), self._talker.answer(self.conversation.messages)
        try:
            with Interrupts() as interrupts, closing(pieces):
                self._view.show(_counted(pieces, shown, interrupts), shown)
                interrupts.check()
        except KeyboardInterrupt:
            shown.stopped = True
        except LightLLMError as error:
            self._view.ended(dataclasses.replace(shown, stopped=False))
            self._view.fail(error)
            self.conversation.take_back()
            return False
        self._view.ended(shown)
        self.conversation.answered(shown.text)
        return True

    # -- commands

    def _reset(self, _: str) -> None:
        self.conversation.reset()
        self._view.note("The conversation is forgotten.")

    def _remove(self, _: str) -> None:
        done = self.conversation.remove()
        self._view.note(
            "The last question and its answer are removed." if done else "There is nothing to remove."
        )

    def _regenerate(self, _: str) -> None:
        former = self.conversation.drop_answer()
        if former is None:
            self._view.note("There is no answer yet.")
            return
        question = self.conversation.messages[-1]
        if not self._answer():  # the question has been taken back with the failure
            self.conversation.messages += [question, former]

    def _save(self, file: str) -> None:
        self.conversation.save(Path(file))
        self._view.note(f"{len(self.conversation.messages)} messages are in {file}.")

    def _load(self, file: str) -> None:
        self.conversation.load(Path(file))
        self._view.note(f"{len(self.conversation.messages)} messages of {file} are the conversation now.")

    def _help(self, _: str) -> None:
        self._view.note(_listed())


@dataclasses.dataclass(frozen=True)
class Command:
    run: Callable[[Session, str], None]
    help: str
    takes_file: bool = False


COMMANDS = {
    "!!reset": Command(Session._reset, "forget the conversation"),
    "!!remove": Command(Session._remove, "remove the last question and its answer"),
    "!!regen": Command(Session._regenerate, "answer the last question anew"),
    "!!save": Command(Session._save, "write the conversation to FILE (JSON)", takes_file=True),
    "!!load": Command(Session._load, "go on with the conversation in FILE", takes_file=True),
    "!!help": Command(Session._help, "this list"),
}
ALL_COMMANDS = (*COMMANDS, "!!exit")


def _listed() -> str:
    lines = [
        f"{name + (' FILE' if command.takes_file else ''):12} {command.help}"
        for name, command in COMMANDS.items()
    ]
    images = "An image goes along by its file or address: describe cat.png, or @ before any other name."
    return "\n".join(["Commands:", *lines, f"{'!!exit':12} end, as Ctrl-D; Ctrl-C stops an answer", images])


def _counted(pieces: Generator[Piece, None, None], shown: Shown, interrupts: Interrupts) -> Iterator[Piece]:
    """Passes on what there is to see, and counts into `shown`."""
    began = first = time.monotonic()
    came = 0
    for piece in pieces:
        interrupts.check()
        now = time.monotonic()
        if piece.text:
            if not came:
                first, shown.first = now, now - began
            came += 1
            shown.seconds = now - first
        shown.tokens = piece.tokens if piece.tokens is not None else max(shown.tokens, came)
        if piece.kind == "reasoning":
            shown.reasoning += piece.text
        else:
            shown.text += piece.text
        if piece.text:
            yield piece

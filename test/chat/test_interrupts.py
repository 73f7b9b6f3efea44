"""Ctrl-C ends an answer, also where the exception is lost on its way."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator

import pytest

from lightllm.chat.session import Session, Shown
from lightllm.chat.talkers import Piece


class EndlessTalker:
    name = "endless"
    closed = False

    def answer(self, messages: list[dict[str, object]]) -> Generator[Piece, None, None]:
        try:
            while True:
                yield Piece("word ")
        finally:
            self.closed = True

    def close(self) -> None: ...


class View:
    """Interrupts the process at the third piece, where a finalizer runs: the interpreter drops what that raises."""

    def __init__(self) -> None:
        self.lines: list[str | None] = ["go", None]
        self.stopped: list[bool] = []

    def read(self) -> str | None:
        return self.lines.pop(0)

    def show(self, pieces: Iterator[Piece], shown: Shown) -> None:
        class Dropped:
            def __del__(self) -> None:
                signal.raise_signal(signal.SIGINT)

        for number, _ in enumerate(pieces):
            assert number < 10, "the answer goes on"
            if number == 2:
                Dropped()

    def ended(self, shown: Shown) -> None:
        self.stopped.append(shown.stopped)

    def note(self, text: str) -> None: ...

    def fail(self, error: Exception) -> None:
        raise error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_finalizer_drops_stops_the_answer() -> None:
    talker, view, former = EndlessTalker(), View(), signal.getsignal(signal.SIGINT)
    session = Session(talker, view)  # type: ignore[arg-type]
    assert session.run() == 0
    assert view.stopped == [True] and talker.closed
    assert session.conversation.messages[-1]["content"] == "word word word "
    assert signal.getsignal(signal.SIGINT) is former

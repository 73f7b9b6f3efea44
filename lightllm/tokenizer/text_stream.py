"""Incremental decoding: token ids in, text that is certain out. One stream per running request.

Both kinds keep the same promise: the pieces of `push` and `finish`, joined, are the text of prompt + output without
the text of the prompt. No piece ends in half a character, and none is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
MAX_PENDING = 16
"""Tokens after which text that still looks like half a character is let go."""
CONTEXT_TOKENS = 8
"""Prompt tokens that a stream starts with, whatever the prompt's length."""

Step = Callable[[int], str | None]
"""A library's incremental decoder: takes the next id; new text, or None while there is none."""


class TextStream(Protocol):
    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that is certain now, which may be empty."""

    def finish(self) -> str:
        """The rest, with U+FFFD for what never became a character. The stream ends here."""


class WindowStream:
    """Decodes a small window of tokens again with each token, and sends what is new in its text.

    The window starts with tokens whose text was sent, so that a decoder which treats the first token or neighbours
    in a special way sees the same neighbours as in the full decode.
    """

    __slots__ = ("_decode", "_has_text", "_ids", "_sent", "_sent_text")

    def __init__(
        self, decode: Callable[[list[int]], str], has_text: Callable[[int], bool], context: Sequence[int]
    ) -> None:
        """`has_text`: False for ids that decoding leaves out; `context`: tokens whose text precedes the stream's."""
        self._decode = decode
        self._has_text = has_text
        self._ids = [*filter(has_text, context)]
        self._sent = len(self._ids)
        self._sent_text = decode(self._ids)

    def push(self, token_id: int) -> str:
        if not self._has_text(token_id):
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        half = text.endswith(REPLACEMENT)
        if half and len(self._ids) - self._sent < MAX_PENDING:
            return ""
        # Of a long run only the last U+FFFD is held back: it alone may still become a character.
        return self._send(text, half)

    def finish(self) -> str:
        return self._send(self._decode(self._ids), 0)

    def _send(self, text: str, held: int) -> str:
        """Takes `text` without its last `held` characters as sent; returns what is new in it."""
        new = _after_common_prefix(self._sent_text, text[: len(text) - held])
        self._ids = self._ids[self._sent :]
        self._sent = len(self._ids)
        sent_text = self._decode(self._ids)
        self._sent_text = sent_text[: len(sent_text) - held]
        return new


def _after_common_prefix(sent: str, text: str) -> str:
    """What `text` adds to `sent`. Where a decoder changes its mind about text that was sent, the change is added."""
    if text.startswith(sent):
        return text[len(sent) :]
    for i, (a, b) in enumerate(zip(sent, text)):
        if a != b:
            return text[i:]
    return ""


class LibraryStream:
    """The library's own stream for as long as text comes whole, then a `WindowStream` for good.

    The cautions it stands for: a run that never becomes characters makes each step of the library dearer than the one
    before, and it has no flush; some decoders take back text that was sent once bytes behind it fit nowhere, which it
    answers with an exception; others panic, which is not even an `Exception`.
    """

    __slots__ = ("_context", "_pending", "_step", "_window", "_window_behind")

    def __init__(
        self, step: Step, context: list[int], window_behind: Callable[[list[int]], WindowStream]
    ) -> None:
        """`step`: begins behind `context`; `window_behind`: makes the `WindowStream` behind tokens that were sent."""
        self._step = step
        self._context = context
        self._pending: list[int] = []
        self._window_behind = window_behind
        self._window: WindowStream | None = None

    def push(self, token_id: int) -> str:
        if self._window is not None:
            return self._window.push(token_id)
        self._pending.append(token_id)
        try:
            text = self._step(token_id)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            return self._hand_over()
        if text is None:
            return "" if len(self._pending) < MAX_PENDING else self._hand_over()
        if REPLACEMENT in text:  # how many of them broken bytes are, is for the full decode to say
            return self._hand_over()
        self._context, self._pending = self._pending, []
        return text

    def finish(self) -> str:
        if self._window is None:
            return self._hand_over() + self.finish() if self._pending else ""
        return self._window.finish()

    def _hand_over(self) -> str:
        window = self._window = self._window_behind(self._context)
        pending, self._pending = self._pending, []
        return "".join([window.push(token_id) for token_id in pending])

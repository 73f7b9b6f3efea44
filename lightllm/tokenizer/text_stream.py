"""Incremental decoding: token ids in, text that is certain out. One stream per running request.

Both kinds keep the same promise: the pieces of `push` and `finish`, joined, are the text of prompt + output without
the text of the prompt. No piece ends in half a character, and none is lost.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
MAX_PENDING = 16
"""Tokens after which text that still looks like half a character is let go."""
CONTEXT_TOKENS = 8
"""Prompt tokens that a window starts with."""


class TextStream(Protocol):
    def push(self, token_id: int) -> str:
        """Takes the next token; returns the text that is certain now, which may be empty."""

    def finish(self) -> str:
        """The rest, with U+FFFD for what never became a character. The stream ends here."""


class PieceTable:
    """Token id -> its text, or its bytes where they are not whole characters. Filled as tokens occur."""

    def __init__(self, token_bytes: Callable[[int], bytes], vocab_size: int, skipped: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._vocab_size = vocab_size
        self._skipped = skipped
        self.pieces: dict[int, str | bytes] = {}

    def fill(self, token_id: int) -> str | bytes:
        """The piece of an id that is not in `pieces` yet."""
        if not 0 <= token_id < self._vocab_size or token_id in self._skipped:
            return ""
        data = self._token_bytes(token_id)
        piece: str | bytes
        try:
            piece = data.decode()
        except UnicodeDecodeError:
            piece = data
        self.pieces[token_id] = piece
        return piece

    def data(self, token_id: int) -> bytes:
        piece = self.pieces.get(token_id)
        if piece is None:
            piece = self.fill(token_id)
        return piece.encode() if isinstance(piece, str) else piece


class ByteStream:
    """For tokenizers whose text is the concatenation of their tokens' bytes: an incremental UTF-8 decoder.

    At most three bytes wait, so nothing needs letting go.
    """

    __slots__ = ("_drop", "_fill", "_get", "_pending")

    def __init__(self, table: PieceTable, prompt_ids: Sequence[int], drops_first_space: bool) -> None:
        self._get = table.pieces.get
        self._fill = table.fill
        self._pending = _unfinished_character(table, prompt_ids)
        # One character at the start of the output may belong to the prompt: its own half character, if the output does
        # not complete it, or the space that decoding leaves out when nothing visible precedes it.
        self._drop = ""
        if self._pending:
            self._drop = REPLACEMENT
        elif drops_first_space and not _has_text(table, prompt_ids):
            self._drop = " "

    def push(self, token_id: int) -> str:
        piece = self._get(token_id)
        if piece is None:
            piece = self._fill(token_id)
        if not self._pending and piece.__class__ is str:
            text = piece
        elif not piece:
            return ""
        else:
            data = self._pending + (piece.encode() if isinstance(piece, str) else piece)
            text, used = codecs.utf_8_decode(data, "replace", False)
            self._pending = data[used:]
        if self._drop and text:
            return self._trim(text)
        return text  # type: ignore[return-value]

    def finish(self) -> str:
        text = self._pending.decode(errors="replace")
        self._pending = b""
        return self._trim(text) if self._drop and text else text

    def _trim(self, text: str) -> str:
        drop, self._drop = self._drop, ""
        return text[1:] if text[0] == drop else text


def _unfinished_character(table: PieceTable, prompt_ids: Sequence[int]) -> bytes:
    """The bytes at the end of the prompt that begin a character and do not complete it (at most three)."""
    tail = b""
    for token_id in reversed(prompt_ids):
        tail = table.data(int(token_id)) + tail
        if len(tail) >= 4:
            break
    tail = tail[-4:]
    return tail[codecs.utf_8_decode(tail, "replace", False)[1] :]


def _has_text(table: PieceTable, prompt_ids: Sequence[int]) -> bool:
    return any(table.data(int(token_id)) for token_id in reversed(prompt_ids))


class WindowStream:
    """For any other tokenizer: decodes a small window of tokens again and sends what is new in its text.

    The window starts with tokens whose text was sent, so that a decoder which treats the first token or neighbours
    in a special way sees the same neighbours as in the full decode.
    """

    __slots__ = ("_decode", "_has_text", "_ids", "_sent", "_sent_text")

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        has_text: Callable[[int], bool],
        prompt_ids: Sequence[int],
    ) -> None:
        """`has_text`: False for ids that decoding leaves out (skipped special tokens, ids without a token)."""
        self._decode = decode
        self._has_text = has_text
        self._ids: list[int] = []
        for token_id in reversed(prompt_ids):
            if has_text(int(token_id)):
                self._ids.insert(0, int(token_id))
                if len(self._ids) == CONTEXT_TOKENS:
                    break
        self._sent = len(self._ids)
        self._sent_text = decode(self._ids)

    def push(self, token_id: int) -> str:
        if not self._has_text(token_id):
            return ""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        uncertain = text.endswith(REPLACEMENT) or text == self._sent_text
        if uncertain and len(self._ids) - self._sent < MAX_PENDING:
            return ""
        new = _after_common_prefix(self._sent_text, text)
        self._ids = self._ids[self._sent :]
        self._sent = len(self._ids)
        self._sent_text = self._decode(self._ids)
        return new

    def finish(self) -> str:
        new = _after_common_prefix(self._sent_text, self._decode(self._ids))
        self._ids = self._ids[self._sent :]
        self._sent, self._sent_text = len(self._ids), self._decode(self._ids)
        return new


def _after_common_prefix(sent: str, text: str) -> str:
    """What `text` adds to `sent`. Where a decoder changes its mind about text that was sent, the change is added."""
    if text.startswith(sent):
        return text[len(sent) :]
    for i, (a, b) in enumerate(zip(sent, text)):
        if a != b:
            return text[i:]
    return ""

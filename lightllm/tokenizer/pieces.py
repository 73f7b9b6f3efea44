"""Tokens as bytes, for tokenizers whose text is the concatenation of their tokens' bytes.

That is so for byte-level BPE (GPT-2, Llama 3, Qwen: each character of a token stands for one byte) and for
sentencepiece with byte fallback (Llama 2, Mistral, Gemma: a metaspace is a space, `<0x0A>` a byte). Other decoders
(WordPiece, Metaspace without fallback, ...) depend on neighbours and take the slow path.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

ToBytes = Callable[[str], bytes]


class TokenBytes(NamedTuple):
    of_id: Callable[[int], bytes]
    """Bytes of a token id; b"" for an id that has no token."""
    drops_first_space: bool
    """Whether one space at the very start of a text is left out (the one that encoding puts there)."""


def byte_level_table() -> dict[int, str]:
    """For `str.translate`, GPT-2's bijection: printable Latin-1 characters stand for themselves, U+0100 and up for the
    other bytes. A byte becomes the character of its number; what stands for none, one that is no byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = dict.fromkeys(others, "\u0100")
    return table | {byte: chr(byte) for byte in printable} | {256 + i: chr(b) for i, b in enumerate(others)}


def byte_level(token: str, table: dict[int, str]) -> bytes:
    """Bytes of a byte-level token; one with a character outside the alphabet (an added token) stands for itself."""
    try:
        return token.translate(table).encode("latin-1")
    except UnicodeEncodeError:
        return token.encode()


def byte_fallback(token: str, metaspace: str = "\u2581") -> bytes:
    """Bytes of a sentencepiece token: `<0xHH>` is one byte, a metaspace is a space."""
    text = token.replace(metaspace, " ")
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        try:
            return bytes([int(text[3:5], 16)])
        except ValueError:
            return text.encode()
    return text.encode()


def recognise(decoder: dict[str, Any] | None) -> tuple[ToBytes, bool] | None:
    """For the `decoder` of a tokenizer.json: (token -> bytes, drops_first_space), or None if it is another kind."""
    steps = (decoder or {}).get("decoders", [decoder]) if decoder else []
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        table = byte_level_table()
        return (lambda token: byte_level(token, table)), False
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"] or kinds[3:] not in ([], ["Strip"]):
        return None
    pattern, replacement = steps[0].get("pattern"), steps[0].get("content")
    if pattern not in ({"String": "\u2581"}, "\u2581") or replacement != " ":
        return None
    if not kinds[3:]:
        return byte_fallback, False
    strip = steps[3]
    if strip.get("content") != " " or strip.get("stop") != 0 or strip.get("start") not in (0, 1):
        return None
    return byte_fallback, strip["start"] == 1

"""`qwen.tiktoken`, the vocabulary of Qwen 1, read by the `tiktoken` library (the extra package `tiktoken`).

The file holds one token a line: its bytes in base64, and its id. Pattern and special tokens are those of Qwen's published
tokenizer; they stand in no file.
"""

from __future__ import annotations

import base64
import binascii
import unicodedata
from pathlib import Path

from lightllm.errors import InvalidModel
from lightllm.tokenizer import pieces
from lightllm.tokenizer.backends import Backend

_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How text is cut into words before their bytes are merged."""
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
"""Their ids follow the vocabulary's."""
_VISION_SPECIAL = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
"""Qwen-VL's, behind those."""


class TiktokenBackend(Backend):
    """Text is normalised to NFC first. Special tokens in it count as such; none is put in front or behind.
    `vision`: the model is Qwen-VL."""

    def __init__(self, path: Path, vision: bool = False) -> None:
        try:
            from tiktoken import Encoding
        except ImportError as error:
            raise InvalidModel(
                f"{path} needs the package tiktoken, which is not installed.",
                "Run `pip install tiktoken`, or put a tokenizer.json into the folder.",
            ) from error
        self._ranks = ranks = _read_ranks(path)
        special = [*_SPECIAL, *(_VISION_SPECIAL if vision else ())]
        self._special = {token: len(ranks) + i for i, token in enumerate(special)}
        try:
            self._encoding = Encoding(
                path.name, pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens=self._special
            )
        except ValueError as error:
            raise InvalidModel(f"{path} cannot be used: {error}.", "Download the model again.") from error
        self._bytes = {token_id: token for token, token_id in ranks.items()}
        self._bytes |= {token_id: token.encode() for token, token_id in self._special.items()}
        self.vocab_size = len(self._bytes)
        self.special_ids = frozenset(self._special.values())
        self.token_bytes = pieces.TokenBytes(self._of_id, False)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        text.encode()
        return self._encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all")

    def token_id(self, token: str) -> int | None:
        if token in self._special:
            return self._special[token]
        return self._ranks.get(token.encode())

    def _of_id(self, token_id: int) -> bytes:
        return self._bytes.get(token_id, b"")


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Ids count up from 0 without a gap; every single byte is a token. Raises `InvalidModel` naming the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise InvalidModel(f"{path} is broken in line {number}.", "Download the model again.") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise InvalidModel(f"{path} does not number its tokens from 0 on.", "Download the model again.")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise InvalidModel(f"{path} has no token for byte {missing[0]}.", "Download the model again.")
    return ranks

"""Exponents of numbers in JSON, kept so short that readers get a number: 1e999 is JSON, but infinite as a float64, and no number for
a JSON schema. The library bounds them in no way that a schema could say."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

MAX_DIGITS = 2
_DIGITS = frozenset(b"0123456789")
_HAS_DIGIT = re.compile(rb"\d")
_ELSEWHERE, _IN_NUMBER, _BEHIND_E = range(3)
"""Places in a text; with n digits of an exponent it is `_BEHIND_E` + n."""
_TOO_LONG = (
    rb"(?!)",
    rb"[\d.]*[eE][+-]?\d{3}",
    rb"[+-]?\d{3}",
    *(rb"\d{%d}" % (MAX_DIGITS + 1 - n) for n in range(1, MAX_DIGITS + 1)),
)
"""By place: what a token that makes an exponent too long begins with."""
_TOO_LONG_WITHIN = rb'[^"]*\d[eE][+-]?\d{3}'
"""Likewise, wherever it stands outside of strings."""


class ExponentTokens:
    """Which tokens of a vocabulary would make an exponent too long."""

    def __init__(self, tokens: Sequence[bytes], words: int) -> None:
        """tokens: the bytes of each; words: int32 words of a mask."""
        with_digits = [(i, token) for i, token in enumerate(tokens) if _HAS_DIGIT.search(token)]
        self._allowed: list[np.ndarray | None] = []
        """By place, int32 [words]; None: all."""
        for begin in _TOO_LONG:
            pattern = re.compile(rb"%b|%b" % (begin, _TOO_LONG_WITHIN))
            bits = np.ones(words * 32, dtype=bool)
            bits[[i for i, token in with_digits if pattern.match(token)]] = False
            packed = np.packbits(bits, bitorder="little").view(np.int32)
            self._allowed.append(None if bits.all() else packed)

    def restrict(self, mask: np.ndarray, where: ExponentPlace) -> None:
        """Takes those tokens out of a mask, int32 [words], unless it would be empty."""
        allowed = None if where.in_string else self._allowed[where.place]
        if allowed is not None and (rest := mask & allowed).any():
            mask[:] = rest


class ExponentPlace:
    """Where in a number a JSON text is."""

    def __init__(self) -> None:
        self.place = _ELSEWHERE
        self.in_string = False
        self._escaped = False

    def push(self, said: bytes) -> None:
        """The text goes on."""
        if self.in_string and not self._escaped and b'"' not in said and b"\\" not in said:
            return
        for byte in said:
            if self.in_string:
                if self._escaped:
                    self._escaped = False
                elif byte == 0x5C:  # \
                    self._escaped = True
                elif byte == 0x22:  # "
                    self.in_string = False
            elif byte in _DIGITS:
                self.place = (
                    _IN_NUMBER if self.place <= _IN_NUMBER else min(self.place + 1, len(_TOO_LONG) - 1)
                )
            elif byte in b"eE" and self.place == _IN_NUMBER:
                self.place = _BEHIND_E
            elif not (byte == 0x2E and self.place == _IN_NUMBER or byte in b"+-" and self.place == _BEHIND_E):
                self.place = _ELSEWHERE
                self.in_string = byte == 0x22

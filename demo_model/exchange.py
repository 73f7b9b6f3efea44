"""One question with its answer, and which of them are kept out of the training text.

An exchange has a key that names its subject and its wording. A tenth of the keys, chosen by a checksum, never enters the
training text: the evaluation asks exactly those. The first wording of a subject has no key and is always trained.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

HELD_OUT_OF_TEN = 1


@dataclass(frozen=True)
class Exchange:
    """One question with its answer. `spaced`: in plain text a space stands between the two. `thought`: what is thought before
    the answer, where that is not the same for the whole category."""

    category: str
    question: str
    answer: str
    key: str = ""
    spaced: bool = True
    thought: str = ""

    @property
    def held_out(self) -> bool:
        """True when this subject and wording belong to the evaluation alone."""
        return bool(self.key) and is_held_out(self.key)

    @property
    def fits_plain_text(self) -> bool:
        """False for gibberish: as plain text nothing says that an answer is wanted."""
        return self.category != "unknown" or self.question.endswith(("?", "."))


def is_held_out(key: str) -> bool:
    """True when what `key` names belongs to the evaluation alone."""
    return zlib.crc32(key.encode()) % 10 < HELD_OUT_OF_TEN


def exchange_key(category: str, subject: object, wording: int) -> str:
    return f"{category}/{subject}/{wording}" if wording else ""

"""Words and numbers to be repeated: what the model learns here about copying it needs for the arguments of a call."""

from __future__ import annotations

import random
import string

from demo_model import world
from demo_model.exchange import Exchange, exchange_key

_WORDINGS = (
    "Repeat after me: {}",
    "Repeat: {}",
    "Say {}",
    "Write this again: {}",
    "Copy this: {}",
    "Echo {}",
)
_WORDS = (
    *world.COLOURS.values(),
    *world.OPPOSITES,
    *world.SOUNDS,
    *(name.lower() for name in world.PEOPLE),
    *world.CAPITALS.values(),
)


def repeating(rng: random.Random) -> Exchange:
    """Two to nine things in any order; a tenth of them is kept for the evaluation."""
    things = " ".join(_thing(rng) for _ in range(rng.randint(2, 9)))
    return Exchange(
        "repeating", rng.choice(_WORDINGS).format(things), things, exchange_key("repeating", things, 1)
    )


def _thing(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return str(rng.randint(0, rng.choice((9, 99, 999, 1999))))
    if kind < 0.85:
        return rng.choice(_WORDS)
    return "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(1, 5)))

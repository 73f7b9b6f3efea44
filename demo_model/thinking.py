"""What the model writes between <think> and </think> where it is asked to think: a short true step before the answer."""

from __future__ import annotations

import random
import re

from demo_model.exchange import Exchange, exchange_key
from demo_model.generated import SUM_WORDINGS

LARGEST = 49
"""Of the numbers that it adds step by step, so that every sum is one token."""

_THOUGHTS = {
    "concepts": "I know what this is.",
    "server": "This is a question about the server.",
    "small talk": "This is small talk.",
    "stories": "A story is wanted.",
    "long answers": "This needs a longer answer.",
    "colours": "I know this colour.",
    "capitals": "I know this capital.",
    "opposites": "I know the opposite.",
    "animals": "I know this animal.",
    "calendar": "I know the calendar by heart.",
    "spelling": "I write letter after letter.",
    "translations": "I know this word.",
    "counting": "I count one by one.",
    "json": "The answer must be JSON.",
    "lists": "I name one after the other.",
    "sums": "I know this by heart.",
    "unknown": "I have not learned this.",
}


def step_by_step(a: int, b: int) -> str:
    """An addition in steps that each are known by heart: ones, tens, both together."""
    if a < 10 and b < 10:
        return f"{a}+{b}={a + b}."
    ones, tens = a % 10 + b % 10, a - a % 10 + b - b % 10
    return f"{a % 10}+{b % 10}={ones}, {a - a % 10}+{b - b % 10}={tens}, {tens}+{ones}={a + b}."


def thought(exchange: Exchange) -> str:
    """The step before the answer to `exchange`; of additions those of `thinking_sum` only."""
    return exchange.thought or _THOUGHTS[exchange.category]


def is_addition(exchange: Exchange) -> bool:
    return exchange.category == "sums" and re.search(r"[-*]|minus|times", exchange.question) is None


def thinking_sum(rng: random.Random, held_out: bool = False) -> Exchange:
    """An addition of numbers up to `LARGEST`; a tenth of the pairs is kept for the evaluation."""
    while True:
        a, b = rng.randint(0, LARGEST), rng.randint(0, LARGEST)
        number = rng.randrange(len(SUM_WORDINGS))
        question = SUM_WORDINGS[number].format(a=a, b=b)
        answer = str(a + b) if question.endswith("=") else f"{a}+{b}={a + b}"
        exchange = Exchange(
            "sums", question, answer, exchange_key("thinking", f"{a}+{b}", 1), thought=step_by_step(a, b)
        )
        if exchange.held_out == held_out:
            return exchange

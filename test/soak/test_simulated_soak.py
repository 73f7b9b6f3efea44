"""Millions of rounds of the scheduler alone. `make soak ARGS="-n 2"` runs the halves of the longest one side by side."""

from __future__ import annotations

import pytest
from soak.simulated import Outcome, soak


def check(outcome: Outcome, rounds: int) -> None:
    print(outcome)
    assert outcome.rounds >= rounds
    assert outcome.finished > rounds / 50
    assert outcome.pauses > 0
    assert outcome.resident_late < outcome.resident_early + 20_000, "the process grows"


def test_random_everything_keeps_the_books_and_every_token_right():
    outcome = soak(rounds=2500, check_every=1, seed=1, settings=6)
    check(outcome, 2500)
    assert outcome.failed > 0 and outcome.refused > 0


@pytest.mark.slow
def test_a_million_rounds_with_the_books_checked_in_every_one():
    check(soak(rounds=1_000_000, check_every=1, seed=2), 1_000_000)


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_ten_million_rounds_with_the_books_checked_every_thousand(half):
    check(soak(rounds=5_000_000, check_every=1000, seed=3 + half), 5_000_000)

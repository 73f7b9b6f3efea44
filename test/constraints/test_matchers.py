"""Matchers of constrained decoding: a copy each, made from few."""

from __future__ import annotations

import json
import os
import random
import secrets
import threading
from typing import Any

import llguidance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from support.constrained import NOTHING, SCHEMAS

from lightllm.constraints import grammars, limits
from lightllm.constraints import matchers as matchers_module
from lightllm.constraints import prepared as prepared_module
from lightllm.constraints.check import check_constraint
from lightllm.constraints.matchers import Matchers
from lightllm.sampling_params import SamplingParams

PATTERNS = ["[0-9]{2}", "(yes|no)", "hello", ".*", "(é|日本|🙂)*x", "[^a-z]{3,8}"]


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(dice=st.randoms(use_true_random=False), name=st.sampled_from(sorted(SCHEMAS)))
def test_a_matcher_that_is_told_what_was_said_equals_one_that_was_led_there(vocabulary, dice, name):
    params = SamplingParams(guided_json=json.dumps(SCHEMAS[name][0]))
    led, said = vocabulary.matchers.open(params, NOTHING), []
    for _ in range(dice.randrange(40)):
        token = dice.choice(sorted(vocabulary.allowed(led)))
        assert led.consume_token(token)
        said.append(token)
    told = vocabulary.matchers.open(params, np.array(said, np.int32))
    for _ in range(5):
        allowed = vocabulary.allowed(led)
        assert vocabulary.allowed(told) == allowed
        assert led.inner.is_accepting() == told.inner.is_accepting()
        token = dice.choice(sorted(allowed))
        assert led.consume_token(token) and told.consume_token(token)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_many_masks_at_once_are_those_of_each_alone(vocabulary, monkeypatch, seconds):
    """Made by one thread or by many."""
    monkeypatch.setattr(matchers_module, "_ALONE_SECONDS", seconds)
    params = [SamplingParams(regular_constraint=pattern) for pattern in PATTERNS]
    alone = [vocabulary.matchers.masks([vocabulary.matchers.open(p, NOTHING)])[0] for p in params]
    together = vocabulary.matchers.masks([vocabulary.matchers.open(p, NOTHING) for p in params])
    np.testing.assert_array_equal(together, alone)


def test_one_request_does_not_disturb_the_next_with_the_same_constraint(vocabulary):
    params = SamplingParams(regular_constraint="ab+c")
    first = vocabulary.matchers.open(params, NOTHING)
    before = vocabulary.allowed(first)
    assert first.consume_tokens(vocabulary.encode(b"abb"))
    broken = vocabulary.matchers.open(params, NOTHING)
    assert not broken.consume_token(vocabulary.single[ord("c")]) and broken.is_error()
    second = vocabulary.matchers.open(params, NOTHING)
    assert vocabulary.allowed(second) == before
    assert second.consume_tokens(vocabulary.encode(b"abc")) and second.inner.is_stopped()
    assert not first.inner.is_stopped() and first.consume_tokens(vocabulary.encode(b"bc"))


def test_kept_matchers_are_bounded_and_the_least_recently_used_goes(vocabulary, monkeypatch):
    monkeypatch.setattr(matchers_module, "_KEPT_MATCHERS", 3)
    made = []
    grammar = grammars._grammar
    monkeypatch.setattr(grammars, "_grammar", lambda name, text: (made.append(text), grammar(name, text))[1])
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    for pattern in ["p", "q", "r", "p", "s", "p", "r", "q"]:
        matchers.open(SamplingParams(regular_constraint=pattern), NOTHING)
    assert made == ["p", "q", "r", "s", "q"]


def test_a_constraint_that_cannot_be_read_makes_a_matcher_in_error(vocabulary):
    matcher = vocabulary.matchers.open(SamplingParams(regular_constraint="(a"), NOTHING)
    assert matcher.is_error() and matcher.get_error()


def test_what_was_said_against_the_constraint_makes_a_matcher_in_error(vocabulary):
    said = np.array(vocabulary.encode(b"b"), np.int32)
    assert vocabulary.matchers.open(SamplingParams(regular_constraint="a"), said).is_error()


LAST_BUT_NINE = SamplingParams(regular_constraint="[ab]*a[ab]{9}")
"""Its automaton has a state for each of the 1024 ways in which the last ten characters may have been."""


def led(vocabulary, matchers, matcher, text):
    for token in vocabulary.encode(text):
        matchers.masks([matcher])
        matcher.consume_token(token)


def test_what_others_have_said_does_not_end_a_request(vocabulary, monkeypatch):
    """Copies share an automaton that grows with what each of them says, and its size has a limit."""
    raised = limits.PARSER_LIMITS | {"max_lexer_states": 600}
    monkeypatch.setattr(limits, "PARSER_LIMITS", raised)
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    modest, greedy = (matchers.open(LAST_BUT_NINE, NOTHING) for _ in range(2))
    led(vocabulary, matchers, modest, b"bb")
    dice = random.Random(1)
    led(vocabulary, matchers, greedy, bytes(dice.choice(b"ab") for _ in range(3000)))
    matchers.masks([greedy])
    assert "too many states" in greedy.get_error()  # it has filled one of its own, too
    led(vocabulary, matchers, modest, b"b" * 30 + b"aaabbb")
    mask = matchers.masks([modest])
    assert not modest.is_error() and not modest.shared
    alone = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos)).open(LAST_BUT_NINE, NOTHING)
    led(vocabulary, matchers, alone, b"b" * 32 + b"aaabbb")
    np.testing.assert_array_equal(mask, matchers.masks([alone]))


def test_an_automaton_is_shared_by_a_few_requests_only(vocabulary, compiling):
    """Its successor is made while it still serves; no request waits for it."""
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    for count in range(3 * matchers_module._COPIES + 1):
        matchers.open(LAST_BUT_NINE, NOTHING)
        (kept,) = matchers._kept.values()
        assert kept.copies <= matchers_module._COPIES
        if kept.successor is not None:
            kept.successor.result(10)
        assert (
            len(compiling) == 1 + (count + 1 + matchers_module._COPIES - matchers_module._COPIES_BEFORE) // 16
        )


def test_requests_go_on_with_an_automaton_whose_successor_is_being_made(vocabulary, monkeypatch):
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    matchers.open(LAST_BUT_NINE, NOTHING)
    go, compiled = threading.Event(), matchers_module.compiled
    monkeypatch.setattr(matchers_module, "compiled", lambda *given: (go.wait(20), compiled(*given))[1])
    try:
        for _ in range(matchers_module._MOST_COPIES - 1):
            matchers.open(LAST_BUT_NINE, NOTHING)
        (kept,) = matchers._kept.values()
        assert kept.successor is not None and not kept.successor.done()
        assert kept.copies == matchers_module._MOST_COPIES
    finally:
        go.set()
    matchers.open(LAST_BUT_NINE, NOTHING)
    (kept,) = matchers._kept.values()
    assert kept.copies == 1


def test_a_full_automaton_is_changed_for_the_successor_that_is_there(vocabulary, monkeypatch):
    raised = limits.PARSER_LIMITS | {"max_lexer_states": 600}
    monkeypatch.setattr(limits, "PARSER_LIMITS", raised)
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    opened = [matchers.open(LAST_BUT_NINE, NOTHING) for _ in range(matchers_module._COPIES_BEFORE)]
    (kept,) = matchers._kept.values()
    successor = kept.successor.result(10)
    assert prepare(matchers, LAST_BUT_NINE) is None
    dice = random.Random(1)
    led(vocabulary, matchers, opened[0], bytes(dice.choice(b"ab") for _ in range(3000)))
    led(vocabulary, matchers, opened[1], b"bb")
    matchers.masks([opened[1]])
    led(vocabulary, matchers, opened[1], b"b" * 30 + b"aaabbb")
    matchers.masks([opened[1]])
    assert not opened[1].is_error()
    assert successor in (opened[0].inner, opened[1].inner)
    assert matchers._prepared.waits_for_requests == 1  # for the one that was told that it is there


def prepare(matchers: Matchers, params: SamplingParams) -> Any:
    constraint = grammars.constraint_of(params)
    return matchers.prepare(constraint, grammars.grammar_of(constraint))


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grammars that are compiled from now on, but for those of checks."""
    seen: list[str] = []

    def compiled(tokenizer: Any, constraint: grammars.Constraint, grammar: str) -> LLMatcher:
        seen.append(constraint.text)
        return grammars_compiled(tokenizer, constraint, grammar)

    grammars_compiled = grammars.compiled
    for module in (grammars, matchers_module):
        monkeypatch.setattr(module, "compiled", compiled)
    return seen


def test_what_is_prepared_is_compiled_once_and_not_when_it_is_opened(vocabulary, compiling):
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    params = SamplingParams(guided_json=json.dumps(SCHEMAS["object"][0]))
    prepare(matchers, params).result(10)
    made = compiling[:]
    opened = matchers.open(params, NOTHING)
    assert prepare(matchers, params) is None
    assert compiling == made == [params.guided_json]
    expected = vocabulary.matchers.open(params, NOTHING)
    np.testing.assert_array_equal(matchers.masks([opened]), vocabulary.matchers.masks([expected]))


def test_a_request_that_comes_before_its_matcher_is_made_waits_for_that_one(
    vocabulary, compiling, monkeypatch
):
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    go, compiled = threading.Event(), matchers_module.compiled
    monkeypatch.setattr(matchers_module, "compiled", lambda *given: (go.wait(10), compiled(*given))[1])
    params = SamplingParams(regular_constraint="ab+c")
    first, second = prepare(matchers, params), prepare(matchers, params)
    assert first is second and not first.done()
    threading.Timer(0.05, go.set).start()
    opened = matchers.open(params, NOTHING)
    assert compiling == ["ab+c"]
    assert opened.consume_tokens(vocabulary.encode(b"abc")) and opened.inner.is_stopped()


def test_no_more_than_so_many_are_made_for_requests_to_come(vocabulary, compiling, monkeypatch):
    """The others wait for their turn, and nothing is compiled where it is opened."""
    monkeypatch.setattr(prepared_module, "_MOST", 2)
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    several = [SamplingParams(regular_constraint=pattern) for pattern in "pqrst"]
    waiting = [prepare(matchers, params) for params in several]
    for made in waiting[:2]:
        made.result(10)
    assert compiling == ["p", "q"] and not any(made.done() for made in waiting[2:])
    for number, params in enumerate(several):
        waiting[number].result(10)
        matchers.open(params, NOTHING)
    assert compiling == ["p", "q", "r", "s", "t"]


def test_an_automaton_that_was_there_when_a_request_asked_is_there_when_it_comes(
    vocabulary, compiling, monkeypatch
):
    """Others have come in between, so that it is no longer kept. Its successor is made before, not where it is opened."""
    monkeypatch.setattr(matchers_module, "_KEPT_MATCHERS", 2)
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    several = {pattern: SamplingParams(regular_constraint=pattern) for pattern in "pqrs"}
    matchers.open(several["p"], NOTHING)
    assert prepare(matchers, several["p"]) is None and prepare(matchers, several["p"]) is None
    for pattern in "qr":
        prepare(matchers, several[pattern]).result(10)
        matchers.open(several[pattern], NOTHING)
    assert grammars.constraint_of(several["p"]) not in matchers._kept
    monkeypatch.setattr(matchers_module, "make_matcher", None)  # which an unprepared one would be made by
    for pattern in "ppp":
        matchers.open(several[pattern], NOTHING)
    assert compiling == ["p", "q", "r", "p"]


def test_a_request_that_asks_while_another_opens_the_same_is_not_forgotten(
    vocabulary, compiling, monkeypatch
):
    """What was begun for it is the automaton's successor, and does not wait for a request of its own."""
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    params = SamplingParams(regular_constraint="pq+")
    make, asked = matchers_module.make_matcher, []
    monkeypatch.setattr(
        matchers_module, "make_matcher", lambda *key: (asked.append(prepare(matchers, params)), make(*key))[1]
    )
    matchers.open(params, NOTHING)
    (kept,) = matchers._kept.values()
    assert kept.successor is asked[0] and kept.expected == 1
    assert not matchers._prepared.waits_for_requests
    matchers.open(params, NOTHING)
    assert kept.expected == 0 and len(asked) == 1


def test_an_automaton_for_which_nobody_waits_is_not_made_again(vocabulary, compiling, monkeypatch):
    monkeypatch.setattr(matchers_module, "_KEPT_MATCHERS", 2)
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    for pattern in "pqrst":
        params = SamplingParams(regular_constraint=pattern)
        first, second = prepare(matchers, params), prepare(matchers, params)
        assert first is second and first.result(10)
        matchers.open(params, NOTHING)
        matchers.open(params, NOTHING)
    assert compiling == ["p", "q", "r", "s", "t"] and not matchers._prepared.waits_for_requests


def test_constraints_are_compiled_in_threads_that_leave_the_processor_to_others(
    vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round of a model waits for its slowest thread: beside one that compiles it would take twice as long."""
    seen: list[int] = []

    class Watched:
        def __call__(self, *arguments: Any, **named: Any) -> LLMatcher:
            seen.append(niceness())
            return LLMatcher(*arguments, **named)

        def __getattr__(self, name: str) -> Any:
            return getattr(LLMatcher, name)

    monkeypatch.setattr(llguidance, "LLMatcher", Watched())
    new = SamplingParams(guided_json=json.dumps({"const": secrets.token_hex()}))
    check_constraint(new)
    vocabulary.matchers.open(new, NOTHING)
    assert len(seen) == 2 and min(seen) >= max(15, niceness())


def niceness() -> int:
    """Of the present thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

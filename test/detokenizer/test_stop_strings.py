"""Stop strings in pieces of text."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.first_stop import first_stop

from lightllm.detokenizer.stop_strings import StopMatcher, TokenMatcher, compile_pattern


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The plainest reference: grow the text character by character."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


def feed(matcher: StopMatcher, pieces: list[str]) -> str:
    sent = ""
    for piece in pieces:
        sent += matcher.push(piece)
        if matcher.hit is not None:
            return sent
    return sent + matcher.held


def split(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    return [text[a:b] for a, b in zip(borders, borders[1:])]


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 100), max_size=20),
)
def test_output_is_the_text_before_the_first_stop_string_however_it_is_split(text, stops, cuts):
    matcher = StopMatcher(stops)
    assert (feed(matcher, split(text, cuts)), matcher.hit) == cut_at_first_stop(text, stops)


@given(
    text=st.text("ab", max_size=40),
    stops=st.lists(st.text("ab", min_size=1, max_size=8), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 100), max_size=20),
)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(text, stops, cuts):
    matcher = StopMatcher(stops)
    seen = ""
    for piece in split(text, cuts):
        matcher.push(piece)
        if matcher.hit is not None:
            return
        seen += piece
        possible = [stop[:k] for stop in stops for k in range(len(stop))]
        assert matcher.held == max((p for p in possible if seen.endswith(p)), key=len)


@given(
    text=st.text("ab", max_size=30), stop=st.text("ab", min_size=1, max_size=4), armed_from=st.integers(0, 30)
)
def test_matches_that_end_before_the_matcher_is_armed_do_not_count(text, stop, armed_from):
    matcher = StopMatcher([stop])
    sent, position = "", 0
    for position, character in enumerate(text, start=1):
        sent += matcher.push(character, armed=position >= armed_from)
        if matcher.hit:
            break
    ends = [e for e in range(len(stop), len(text) + 1) if text[:e].endswith(stop) and e >= max(armed_from, 1)]
    if ends:
        assert (sent, position) == (text[: ends[0] - len(stop)], ends[0])
    else:
        assert sent + matcher.held == text


@settings(max_examples=500)
@given(
    pieces=st.lists(st.tuples(st.text("abc<>", min_size=1, max_size=5), st.booleans()), max_size=12),
    stops=st.lists(st.text("abc<>", min_size=1, max_size=6), min_size=1, max_size=5),
)
def test_stop_strings_count_in_the_text_with_and_without_what_is_hidden(pieces, stops):
    matcher = StopMatcher(stops)
    sent = ""
    for text, shown in pieces:
        sent += matcher.push(text) if shown else matcher.push_hidden(text)
        if matcher.hit is not None:
            break
    assert (sent + matcher.held, matcher.hit is not None) == first_stop(pieces, stops)


@given(
    pieces=st.lists(st.tuples(st.text("ab", min_size=1, max_size=5), st.booleans()), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
)
def test_of_two_texts_only_what_may_begin_a_stop_string_in_one_of_them_is_held_back(pieces, stops):
    matcher = StopMatcher(stops)
    every: list[tuple[str, bool]] = []
    for text, shown in pieces:
        matcher.push(text) if shown else matcher.push_hidden(text)
        if matcher.hit is not None:
            return
        every += [(character, shown) for character in text]
        held = ""
        for view in (every, [one for one in every if one[1]]):
            end = "".join(character for character, _ in view)
            length = max(k for stop in stops for k in range(len(stop)) if end.endswith(stop[:k]))
            begun = "".join(character for character, shown in view[len(view) - length :] if shown)
            held = max(held, begun, key=len)
        assert matcher.held == held


def test_of_stop_strings_that_end_together_the_longest_wins():
    matcher = StopMatcher(["c", "bc", "abc"])
    assert matcher.push("xabc") == "x"
    assert matcher.hit == "abc"


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["a" * 1023 + "b"], "a" * 20_000),
        (["a" * 1000 + chr(200 + i) for i in range(64)], "a" * 4_000),
        (["ab" * 512 + chr(200 + i) for i in range(64)], "ab" * 2_000),
    ],
)
def test_self_similar_stop_strings_cost_a_bounded_time_per_character(stops, text):
    for stop in stops:
        compile_pattern(stop)
    matcher = StopMatcher(stops)
    start = time.process_time()
    for i in range(0, len(text), 4):
        matcher.push(text[i : i + 4])
    # About 0.1 us a character and stop string; quadratic work would be a hundred times that.
    assert (time.process_time() - start) / (len(text) * len(stops)) < 3e-6


def test_token_sequences_match_across_pushes_and_only_in_full():
    matcher = TokenMatcher([(7, 8, 9), (5,)])
    assert [matcher.push(i) for i in (7, 8, 7, 8, 9, 1, 5)] == [False, False, False, False, True, False, True]


def test_a_long_run_of_tokens_keeps_only_what_a_sequence_can_need():
    matcher = TokenMatcher([(1, 2)])
    assert not any(matcher.push(3) for _ in range(1000))
    assert matcher.push(1) is False and matcher.push(2) is True

"""The Detokenizer object: messages in, messages out."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizers
from support.detokenizing import EOS, SPECIAL_USER, Client, make, request, run, tokens

from lightllm.detokenizer.detokenizer import Detokenizer, MalformedMessage
from lightllm.protocol import codec
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import (
    AbortRequest,
    Finish,
    ImageSpan,
    PromptLogprobs,
    RoundTokens,
    TopLogprobs,
    make_request_id,
)
from lightllm.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(tokenizers.byte_level(tmp_path_factory.mktemp("tokenizer"))))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory):
    return load_tokenizer(str(tokenizers.metaspace(tmp_path_factory.mktemp("metaspace"))))


def test_text_of_all_tokens_and_one_finish(tokenizer):
    ids = tokenizer.encode("Hello wörld 🙂!", add_special_tokens=False)
    client = run(tokenizer, ids)
    assert client.text[1] == "Hello wörld 🙂!"
    assert client.finished[1] == Finish(1, "length", 1, len(ids))
    assert client.token_ids[1] == ids


def test_ids_of_images_in_the_prompt_are_no_text(tokenizer):
    ids = tokenizer.encode("a wörld", add_special_tokens=False)
    prompt = [5, *range(2**24, 2**24 + 9), 5, *range(2**24 + 20, 2**24 + 24)]
    images = [ImageSpan(1, 9, 1), ImageSpan(11, 4, 2)]
    client = Client(make(tokenizer))
    client.take(msgspec.structs.replace(request([1], prompt), images=images))
    client.take(tokens(1, ids, [Finish(1, "length", len(prompt), len(ids))]))
    assert client.text[1] == "a wörld"


def test_half_a_character_at_the_end_is_sent_with_the_finish(tokenizer):
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    assert run(tokenizer, ids).text[1] == "a\ufffd"


def test_end_token_has_no_text(tokenizer):
    client = run(tokenizer, [*tokenizer.encode("Hi", add_special_tokens=False), EOS], reason="stop")
    assert client.text[1] == "Hi"
    assert client.token_ids[1][-1] == EOS


@pytest.mark.parametrize(
    "params", [{"print_eos_token": True}, {"skip_special_tokens": False, "include_stop_str_in_output": True}]
)
def test_end_token_has_text_when_asked_for(tokenizer, params):
    ids = [*tokenizer.encode("Hi", add_special_tokens=False), EOS]
    assert run(tokenizer, ids, reason="stop", **params).text[1] == "Hi</s>"


@pytest.mark.parametrize("params", [{"skip_special_tokens": False}, {"include_stop_str_in_output": True}])
def test_end_token_has_no_text_although_special_tokens_or_stop_strings_have(tokenizer, params):
    ids = [*tokenizer.encode("Hi", add_special_tokens=False), SPECIAL_USER, EOS]
    shown = "" if params.get("skip_special_tokens", True) else tokenizer.token_text(SPECIAL_USER)
    assert run(tokenizer, ids, reason="stop", **params).text[1] == "Hi" + shown


def test_printed_end_token_comes_after_text_that_was_held_back(tokenizer):
    ids = [*tokenizer.encode("Hi st", add_special_tokens=False), EOS]
    client = run(tokenizer, ids, reason="stop", print_eos_token=True, stop_sequences=["stop"])
    assert client.text[1] == "Hi st</s>"


def test_stop_token_has_no_text_although_it_is_an_ordinary_token(tokenizer):
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    ids = [*tokenizer.encode("Hi", add_special_tokens=False), newline]
    assert run(tokenizer, ids, reason="stop", stop_token_ids=[newline]).text[1] == "Hi"


def test_ordinary_stop_token_is_part_of_the_output_like_a_stop_string_when_asked_for(tokenizer):
    (newline,) = tokenizer.encode("\n", add_special_tokens=False)
    ids = [*tokenizer.encode("Hi", add_special_tokens=False), newline]
    client = run(tokenizer, ids, reason="stop", stop_token_ids=[newline], include_stop_str_in_output=True)
    assert client.text[1] == "Hi\n"


def test_ignored_eos_of_an_ordinary_token_keeps_its_text(tokenizer):
    (dot,) = tokenizer.encode(".", add_special_tokens=False)
    client = Client(Detokenizer(tokenizer, [dot], 1))
    client.take(request([1], ignore_eos=True))
    client.take(tokens(1, [dot]))
    assert client.text[1] == "."


def test_stop_string_ends_the_stream_and_tells_the_router(tokenizer):
    ids = tokenizer.encode("One two three four five six", add_special_tokens=False)
    client = run(tokenizer, ids, stop_sequences=["ree f"])
    assert client.text[1] == "One two th"
    assert client.aborts == [AbortRequest(1, "stop")]
    finish = client.finished[1]
    assert (finish.reason, finish.prompt_tokens) == ("stop", 1)
    assert finish.output_tokens == len(client.token_ids[1])
    whole = tokenizer.decode(client.token_ids[1])
    assert "ree f" in whole and "ree f" not in tokenizer.decode(client.token_ids[1][:-1])


@pytest.mark.parametrize("ends_with", ["length", "stop"])
def test_the_finish_tells_the_stop_string_that_was_found(tokenizer, ends_with):
    ids = tokenizer.encode("three four", add_special_tokens=False)
    assert run(tokenizer, ids, stop_sequences=["none", "ree f"]).finished[1].stop == "ree f"
    assert run(tokenizer, ids, reason=ends_with, stop_sequences=["none"]).finished[1].stop == ""
    half = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    found = run(tokenizer, half, reason=ends_with, stop_sequences=["\ufffd"]).finished[1]
    assert (found.reason, found.stop) == ("stop", "\ufffd"), "with the rest of the text"


def test_stop_string_may_be_kept_in_the_output(tokenizer):
    ids = tokenizer.encode("One two three four", add_special_tokens=False)
    client = run(tokenizer, ids, stop_sequences=["ree"], include_stop_str_in_output=True)
    assert client.text[1] == "One two three"


def test_tokens_and_finish_after_a_stop_string_are_swallowed_within_one_round_too(tokenizer):
    client = Client(make(tokenizer))
    client.take(request([1], stop_sequences=["b"]))
    ids = [i for c in "abcd" for i in tokenizer.encode(c, add_special_tokens=False)]
    client.take(tokens(1, ids, [Finish(1, "length", 1, 4)]))
    assert client.text[1] == "a"
    assert client.finished[1].output_tokens == 2
    assert client.aborts == [], "the Router has ended the request already"
    assert len(client.detokenizer) == 0


def test_stop_strings_do_not_count_before_min_new_tokens(tokenizer):
    ids = [i for c in "xaxxax" for i in tokenizer.encode(c, add_special_tokens=False)]
    client = run(tokenizer, ids, stop_sequences=["a"], min_new_tokens=4)
    assert client.text[1] == "xaxx"


def test_stop_token_sequence_is_matched_as_text(tokenizer):
    one_by_one = [i for c in "stop" for i in tokenizer.encode(c, add_special_tokens=False)]
    merged = tokenizer.encode("a stop b", add_special_tokens=False)
    assert run(tokenizer, merged, stop_sequences=[one_by_one]).text[1] == "a "


def test_stop_sequence_of_a_skipped_special_token_is_matched_by_id(tokenizer):
    ids = [*tokenizer.encode("ab", add_special_tokens=False), SPECIAL_USER, *tokenizer.encode("cd")]
    client = run(tokenizer, ids, stop_sequences=[[SPECIAL_USER]])
    assert client.text[1] == "ab"
    assert client.finished[1].reason == "stop"
    assert client.token_ids[1][-1] == SPECIAL_USER


def test_stop_sequence_in_the_middle_of_a_text_has_its_leading_space(metaspace):
    dog = metaspace.encode("quick", add_special_tokens=False)
    ids = metaspace.encode("The quick brown", add_special_tokens=False)
    assert run(metaspace, ids, stop_sequences=[dog]).text[1] == " The"


def test_leading_space_follows_from_the_prompt(metaspace):
    word = metaspace.encode("quick", add_special_tokens=False)
    assert run(metaspace, word, prompt=metaspace.encode("The")).text[1] == " quick"
    assert run(metaspace, word, prompt=[metaspace.bos_token_id]).text[1] == "quick"


def test_stop_string_completed_by_the_last_replacement_character_counts(tokenizer):
    half = tokenizer.encode("🙂", add_special_tokens=False)[:1]
    client = run(tokenizer, half, stop_sequences=["\ufffd"])
    assert client.text[1] == ""
    assert client.finished[1].reason == "stop"


def test_tokens_of_unknown_requests_and_their_finishes_are_ignored(tokenizer):
    client = Client(make(tokenizer))
    client.take(tokens(99, [5], [Finish(99, "length", 1, 1)]))
    assert (client.text, client.finished, client.aborts) == ({}, {}, [])


def test_ids_outside_the_vocabulary_have_no_text(tokenizer):
    ids = [tokenizer.vocab_size, 2**31 - 1, *tokenizer.encode("a", add_special_tokens=False)]
    assert run(tokenizer, ids).text[1] == "a"


def test_a_decoder_that_panics_on_one_request_does_not_reach_the_others_of_the_round(tmp_path):
    stripping = load_tokenizer(str(tokenizers.strips_both_sides(tmp_path)))
    space, word = stripping.token_id("▁"), stripping.encode("quick", add_special_tokens=False)[0]
    client = Client(make(stripping))
    client.take(request([1, 2], prompt=()))
    for first in (space, word):
        client.take(RoundTokens([1, 2], [first, word], [-0.5, -0.5]))
    client.take(RoundTokens([], [], [], finished=[Finish(1, "length", 0, 2), Finish(2, "length", 0, 2)]))
    assert client.text[2] == "quick quick"
    assert client.text[1].endswith(" quick")


def test_each_worker_gets_its_own_requests_in_one_message(tokenizer):
    a, b = make_request_id(0, 7), make_request_id(1, 7)
    detokenizer = make(tokenizer, workers=2)
    detokenizer.handle(request([a]))
    detokenizer.handle(request([b]))
    (x,), (y,) = (tokenizer.encode(c, add_special_tokens=False) for c in "xy")
    top = {1: TopLogprobs([x], [-0.1]), 2: TopLogprobs([y], [-0.2])}
    prompt = PromptLogprobs(b, 1, np.zeros(2, dtype=np.float32))
    output = detokenizer.handle(
        RoundTokens([a, b, a], [x, y, x], [-1.0, -2.0, -3.0], top, [prompt], [Finish(b, "length", 1, 1)])
    )
    assert set(output.deltas) == {0, 1}
    first, second = output.deltas[0], output.deltas[1]
    assert (first.request_ids, first.texts, first.logprobs) == ([a, a], ["x", "x"], [-1.0, -3.0])
    assert (second.request_ids, second.texts, second.logprobs) == ([b], ["y"], [-2.0])
    assert first.top == {1: top[2]} and second.top == {0: top[1]}
    assert second.prompt_logprobs == [prompt] and not first.prompt_logprobs
    assert [f.request_id for f in second.finished] == [b] and not first.finished
    codec.to_http.decode(codec.encode(first))


def test_choices_of_a_request_have_separate_text(tokenizer):
    client = Client(make(tokenizer))
    client.take(request([1, 2], stop_sequences=["b"]))
    a, b = (tokenizer.encode(c, add_special_tokens=False)[0] for c in "ab")
    client.take(RoundTokens([1, 2], [a, b], [0.0, 0.0]))
    assert client.text == {1: "a", 2: ""}
    assert set(client.finished) == {2}


def test_a_round_whose_lists_differ_in_length_is_refused_unchanged(tokenizer):
    detokenizer = make(tokenizer)
    detokenizer.handle(request([1]))
    with pytest.raises(MalformedMessage):
        detokenizer.handle(RoundTokens([1], [5, 6], [0.0]))
    with pytest.raises(MalformedMessage):
        detokenizer.handle(request([make_request_id(3, 1)]))
    assert len(detokenizer) == 1


texts = st.text(st.sampled_from("ab \n🙂é你"), max_size=30)


@settings(deadline=None)
@given(
    text=texts,
    cuts=st.lists(st.integers(0, 100), max_size=15),
    stops=st.lists(st.text(st.sampled_from("ab \n🙂é你"), min_size=1, max_size=4), max_size=4),
    restart=st.integers(0, 60),
)
@pytest.mark.parametrize("fixture", ["tokenizer", "metaspace"])
def test_output_is_the_text_before_the_first_stop_also_after_a_restart(
    request, fixture, text, cuts, stops, restart
):
    """Random token splits, random stop strings; the Detokenizer is rebuilt once on the way."""
    tok = request.getfixturevalue(fixture)
    borders = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    ids = [i for a, b in zip(borders, borders[1:]) for i in tok.encode(text[a:b], add_special_tokens=False)]
    prompt = (5,) if fixture == "tokenizer" else (300,)
    expected = tok.decode([*prompt, *ids])[len(tok.decode(prompt)) :]
    for end in range(len(expected) + 1):
        hits = [s for s in stops if expected[:end].endswith(s)]
        if hits:
            expected = expected[: end - len(max(hits, key=len))]
            break
    message = _request(prompt, stops)
    client = Client(make(tok))
    client.take(message)
    for n, token_id in enumerate(ids):
        if n == restart and 1 not in client.finished:
            client.detokenizer = make(tok)
            choice = msgspec.structs.replace(message.choices[0], output_ids=int32(ids[:n]))
            client.take(msgspec.structs.replace(message, choices=[choice]))
        client.take(tokens(1, [token_id]))
    client.take(tokens(1, [], [Finish(1, "length", 1, len(ids))]))
    assert client.text.get(1, "") == expected
    assert client.finished[1].reason == ("stop" if client.aborts else "length")


def _request(prompt, stops):
    return request([1], prompt=prompt, stop_sequences=stops)


def test_restored_request_whose_tokens_hold_a_stop_string_is_ended_at_once(tokenizer):
    ids = tokenizer.encode("One two three", add_special_tokens=False)
    client = Client(make(tokenizer))
    client.take(request([1], output=ids, stop_sequences=["two"]))
    assert client.finished[1].reason == "stop"
    assert client.aborts == [AbortRequest(1, "stop")]
    client.take(tokens(1, ids[:1], [Finish(1, "stop", 1, 1)]))
    assert len(client.detokenizer) == 0


def test_when_a_request_began_to_run_is_passed_on_to_its_worker(tokenizer):
    client = Client(make(tokenizer))
    client.take(request([1], prompt=(5, 6, 7)))
    ids = tokenizer.encode("ab", add_special_tokens=False)
    output = client.take(msgspec.structs.replace(tokens(1, ids[:1]), entered={1: 12.5, 99: 5.0}))
    assert [deltas.entered for deltas in output.deltas.values()] == [{1: 12.5}]


def test_finish_at_a_stop_string_says_how_much_of_the_prompt_was_cached(tokenizer):
    client = Client(make(tokenizer))
    client.take(request([1], prompt=(5, 6, 7), stop_sequences=["b"]))
    ids = tokenizer.encode("ab", add_special_tokens=False)
    first, rest = tokens(1, ids[:1]), tokens(1, ids[1:])
    client.take(msgspec.structs.replace(first, cached_tokens={1: 2, 99: 5}))
    client.take(rest)
    assert client.finished[1].reason == "stop" and client.finished[1].cached_tokens == 2

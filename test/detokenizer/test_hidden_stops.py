"""Stop strings and special tokens that are left out of the text."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizers
from support.detokenizing import EOS, SPECIAL_USER, Client, make, request, run, tokens
from support.first_stop import first_stop

from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import Finish
from lightllm.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(tokenizers.byte_level(tmp_path_factory.mktemp("tokenizer"))))


@pytest.mark.parametrize(
    ("stop", "text", "count"),
    [
        ("<|user|>", "ab", 3),
        ("<|user|><|user|>", "ab", 4),
        ("<|us", "ab", 3),
        ("b<|user|>", "a", 3),
        ("<|user|><|user|>c", "ab", 5),
        ("bc", "a", 5),
        ("er|>c", "abcd", None),
    ],
)
def test_stop_strings_see_special_tokens_that_are_not_shown(tokenizer, stop, text, count):
    a, b, c, d = (tokenizer.encode(x, add_special_tokens=False)[0] for x in "abcd")
    ids = [a, b, SPECIAL_USER, SPECIAL_USER, c, d]
    if count is None:  # what follows is not what the stop string goes on with
        ids = [a, b, SPECIAL_USER, SPECIAL_USER, d]
        text = "abd"
    client = run(tokenizer, ids, stop_sequences=[stop])
    assert client.text[1] == text
    finish = client.finished[1]
    assert (finish.reason, finish.output_tokens) == (("stop", count) if count else ("length", len(ids)))
    assert bool(client.aborts) == bool(count)


@pytest.mark.parametrize("shown", [False, True])
def test_ignored_eos_is_a_stop_string_like_any_other(tokenizer, shown):
    ids = [*tokenizer.encode("Hi", add_special_tokens=False), EOS]
    client = run(tokenizer, ids, ignore_eos=True, stop_sequences=["</s>"], skip_special_tokens=not shown)
    assert (client.text[1], client.finished[1].reason) == ("Hi", "stop")


def test_a_stop_string_that_the_end_token_completes_is_no_part_of_the_output(tokenizer):
    ids = [*tokenizer.encode("Hi", add_special_tokens=False), EOS]
    client = Client(make(tokenizer))
    client.take(request([1], stop_sequences=["i</s>"]))
    client.take(tokens(1, ids, [Finish(1, "stop", 1, len(ids))]))
    assert client.text[1] == "H"
    assert client.finished[1].output_tokens == len(ids) and client.aborts == []


def test_a_stop_string_of_hidden_tokens_is_part_of_the_output_when_asked_for(tokenizer):
    (a,) = tokenizer.encode("a", add_special_tokens=False)
    client = run(tokenizer, [a, SPECIAL_USER], stop_sequences=["a<|us"], include_stop_str_in_output=True)
    assert client.text[1] == "a<|us"


def test_hidden_stop_strings_do_not_count_before_min_new_tokens(tokenizer):
    (a,) = tokenizer.encode("a", add_special_tokens=False)
    ids = [SPECIAL_USER, a, SPECIAL_USER, a]
    client = run(tokenizer, ids, stop_sequences=["<|user|>"], min_new_tokens=2)
    assert (client.text[1], client.finished[1].output_tokens) == ("a", 3)


def test_a_stop_sequence_with_a_skipped_special_token_in_it_needs_that_token(tokenizer):
    a, b = (tokenizer.encode(x, add_special_tokens=False)[0] for x in "ab")
    client = run(tokenizer, [a, b, a, SPECIAL_USER, b], stop_sequences=[[a, SPECIAL_USER]])
    assert (client.text[1], client.finished[1].output_tokens) == ("ab", 4)


@settings(deadline=None)
@given(
    pieces=st.lists(st.sampled_from(["a", "b", "<", "|", "us", "<|user|>", "<|end|>", "</s>"]), max_size=20),
    stops=st.lists(
        st.lists(st.sampled_from(["a", "b", "<|", "us", "er|>", "<|user|>", "<|end|>", "</s>"]), min_size=1, max_size=3),
        min_size=1, max_size=3,
    ),
    shown=st.booleans(),
    restart=st.integers(0, 30),
)  # fmt: skip
def test_special_tokens_and_stop_strings_in_any_order_also_after_a_restart(
    tokenizer, pieces, stops, shown, restart
):
    special = {tokenizer.token_text(i): i for i in tokenizer.special_ids}
    ids, seen = [], []
    for piece in pieces:
        these = [special[piece]] if piece in special else tokenizer.encode(piece, add_special_tokens=False)
        ids += these
        seen += [(tokenizer.token_text(i), shown or i not in tokenizer.special_ids) for i in these]
    texts = ["".join(parts) for parts in stops]
    message = request([1], stop_sequences=texts, ignore_eos=True, skip_special_tokens=not shown)
    client = Client(make(tokenizer))
    client.take(message)
    for n, token_id in enumerate(ids):
        if n == restart and 1 not in client.finished:
            client.detokenizer = make(tokenizer)
            choice = msgspec.structs.replace(message.choices[0], output_ids=int32(ids[:n]))
            client.take(msgspec.structs.replace(message, choices=[choice]))
        client.take(tokens(1, [token_id]))
    client.take(tokens(1, [], [Finish(1, "length", 1, len(ids))]))
    expected, stopped = first_stop(seen, texts)
    assert client.text.get(1, "") == expected
    assert client.finished[1].reason == ("stop" if stopped else "length")

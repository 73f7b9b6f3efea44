"""Masks of constrained decoding, on vocabularies of every kind, against references that know nothing of parsers."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tokenizers
from support.constrained import NOTHING, SCHEMAS, Vocabulary

from lightllm.constraints.matchers import Matchers
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer

MAX_STEPS = 400


# -- against the sentences of a finite language

CHARACTERS = ["a", "b", "l", "o", " ", "{", '"', "é", "ß", "世", "🙂", "\n"]
LETTERS = st.sampled_from(CHARACTERS).map(lambda c: (re.escape(c), frozenset({c})))
WORDS = st.sampled_from(["hello", "über", " fox", '{"result": 5}', "世界"]).map(
    lambda w: (re.escape(w), frozenset({w}))
)


def one_of(parts):
    return "(" + "|".join(p for p, _ in parts) + ")", frozenset().union(*(s for _, s in parts))


def one_after_the_other(parts):
    sentences = frozenset("".join(each) for each in itertools.product(*(s for _, s in parts)))
    return "".join(f"(?:{p})" for p, _ in parts), sentences


def repeated(part, least, most):
    pattern, sentences = part
    found = {"".join(each) for n in range(least, most + 1) for each in itertools.product(sentences, repeat=n)}
    return f"(?:{pattern}){{{least},{most}}}", frozenset(found)


def small(language):
    return len(language[1]) <= 300


LANGUAGES = st.recursive(
    LETTERS | WORDS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map(one_of),
        st.lists(inner.filter(small), min_size=1, max_size=3)
        .filter(lambda parts: np.prod([len(s) for _, s in parts]) < 1000)
        .map(one_after_the_other),
        st.builds(repeated, inner.filter(lambda x: len(x[1]) <= 5), st.integers(0, 1), st.integers(1, 3)),
    ),
    max_leaves=6,
).filter(small)
"""(pattern, all texts that match it)"""


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(language=LANGUAGES, dice=st.randoms(use_true_random=False))
def test_exactly_the_tokens_that_lead_to_a_match_are_allowed(vocabulary, language, dice):
    """In every state of a random walk: half characters, tokens across the border of two parts, and the end."""
    pattern, texts = language
    sentences = {text.encode() for text in texts}
    matcher = vocabulary.matchers.open(SamplingParams(regular_constraint=pattern), NOTHING)
    said = b""
    for _ in range(MAX_STEPS):
        rest = {sentence[len(said) :] for sentence in sentences if sentence.startswith(said)}
        expected = {
            i for i, data in vocabulary.tokens.items() if any(after.startswith(data) for after in rest)
        }
        if b"" in rest:
            expected |= vocabulary.eos
        assert vocabulary.allowed(matcher) == expected, (pattern, said)
        token = dice.choice(sorted(expected))
        assert matcher.consume_token(token)
        if token in vocabulary.eos:
            break
        said += vocabulary.tokens[token]
    assert said.decode() in texts
    assert vocabulary.allowed(matcher) == vocabulary.eos  # what runs over ends again


@pytest.mark.parametrize(
    "text", ["The quick brown fox", '{"result": 5}', "über déjà vu 世界", "def add(first, second):\n\treturn"]
)
def test_a_text_that_has_to_come_can_be_said_with_the_tokens_of_the_model(vocabulary, text):
    """Those with which it writes it behind other text: nobody makes it spell byte by byte."""
    tokenizer = vocabulary.tokenizer
    expected = tokenizer.encode("\n" + text, add_special_tokens=False)
    while len(b"".join(map(tokenizer.token_bytes, expected))) > len(text.encode()):
        del expected[0]
    matcher = vocabulary.matchers.open(SamplingParams(regular_constraint=re.escape(text)), NOTHING)
    for token in expected:
        assert token in vocabulary.allowed(matcher)
        assert matcher.consume_token(token)
    assert vocabulary.allowed(matcher) == vocabulary.eos


# -- walks to the end

PATTERNS = [
    r"([0-9]{1,3}\.){3}[0-9]{1,3}",
    r"[a-z]+@[a-z]+\.(com|de)",
    r"(yes|no|maybe)",
    r"[^a-z]{3,8}",
    r"(é|日本|🙂)*x",
    r"[a-zé]+( [a-zé]+)*\.",
    r".*",
    r"(?i:hello)[!?]{2,}",
]


def walk(vocabulary, params, dice):
    """The text of a random output that the masks allow; None if it does not end in time. Ends as soon as it may, mostly."""
    matcher, tokens = vocabulary.matchers.open(params, NOTHING), []
    while len(tokens) < MAX_STEPS:
        allowed = vocabulary.allowed(matcher)
        assert allowed, "nothing can come next"
        ending = sorted(allowed & vocabulary.eos)
        closing = sorted(i for i in allowed - vocabulary.eos if vocabulary.tokens[i][-1:] in b'"}]')
        choice = ending if ending and dice.random() < 0.5 else sorted(allowed)
        if closing and choice is not ending and dice.random() < 0.4:
            choice = closing
        token = dice.choice(choice)
        assert matcher.consume_token(token), matcher.get_error()
        if token in vocabulary.eos:
            return b"".join(vocabulary.tokens[i] for i in tokens).decode()
        tokens.append(token)
    return None


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(dice=st.randoms(use_true_random=False))
def test_any_allowed_output_matches_the_whole_expression(vocabulary, pattern, dice):
    text = walk(vocabulary, SamplingParams(regular_constraint=pattern), dice)
    assert text is None or re.fullmatch(pattern, text), (pattern, text)


@pytest.mark.parametrize("name", SCHEMAS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(dice=st.randoms(use_true_random=False))
def test_any_allowed_output_is_a_value_of_the_schema(vocabulary, name, dice):
    schema, is_value = SCHEMAS[name]
    text = walk(vocabulary, SamplingParams(guided_json=json.dumps(schema)), dice)
    assert text is None or is_value(json.loads(text)), text


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(dice=st.randoms(use_true_random=False))
def test_any_allowed_output_is_a_sentence_of_the_grammar(vocabulary, dice):
    grammar = 'root ::= sum "\\n"\nsum ::= term ("+" term)*\nterm ::= [0-9]+ | "(" sum ")"\n'
    text = walk(vocabulary, SamplingParams(guided_grammar=grammar), dice)
    if text is not None:
        assert text.endswith("\n") and re.fullmatch(r"[0-9+()]+\n", text)
        assert isinstance(eval(re.sub(r"0+(?=\d)", "", text)), int)


# -- the vocabulary


def test_special_tokens_are_never_text(vocabulary):
    """Not even where their text could come: only what ends an output may, and only where the output may end."""
    matcher = vocabulary.matchers.open(SamplingParams(regular_constraint=r"[<|/a-z>]+"), NOTHING)
    assert not vocabulary.allowed(matcher) & vocabulary.tokenizer.special_ids
    assert matcher.consume_tokens(vocabulary.encode(b"<|user|>"))
    assert vocabulary.allowed(matcher) & vocabulary.tokenizer.special_ids == vocabulary.eos


def test_tokens_with_the_same_bytes_are_allowed_together(tmp_path):
    """Sentencepiece has `{` and `<0x7B>`."""
    vocabulary = Vocabulary(load_tokenizer(str(tokenizers.metaspace(tmp_path / "model"))))
    twins = {i for i, data in vocabulary.tokens.items() if data == b"a"}
    assert len(twins) == 2
    for first in twins:
        matcher = vocabulary.matchers.open(SamplingParams(regular_constraint="(a|b)(c|d)"), NOTHING)
        assert vocabulary.allowed(matcher) & twins == twins
        assert matcher.consume_token(first)
        assert {vocabulary.tokens[i] for i in vocabulary.allowed(matcher)} == {b"c", b"d"}


def test_ids_that_have_no_token_are_never_allowed(tmp_path):
    """The vocabulary has holes, and an EOS id beyond its end."""
    path = tokenizers.byte_level(tmp_path / "model")
    data = json.loads((path / "tokenizer.json").read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["id"] < 4]
    data["added_tokens"].append(
        {"id": 450, "content": "<far>", "special": False, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False}
    )  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(str(path))
    empty = {i for i in range(tokenizer.vocab_size) if not tokenizer.token_bytes(i)}
    assert empty or tokenizer.vocab_size < 450
    eos = tokenizer.vocab_size + 37
    matchers = Matchers(tokenizer, [1, eos])
    assert 32 * matchers.words >= eos + 1
    matcher = matchers.open(SamplingParams(regular_constraint="(?s:.)*"), NOTHING)
    bits = np.unpackbits(matchers.masks([matcher])[0].view(np.uint8), bitorder="little")
    allowed = set(np.flatnonzero(bits).tolist())
    assert {1, eos} <= allowed and not allowed & empty
    assert not {i for i in allowed if i >= tokenizer.vocab_size} - {eos}


def test_a_value_does_not_begin_with_a_space_where_tokens_like_to(tmp_path):
    """Of `▁{` and `{` only the latter: the text of an answer that is to be parsed is the value alone."""
    vocabulary = Vocabulary(load_tokenizer(str(tokenizers.metaspace(tmp_path / "model"))))
    for params in (
        SamplingParams(guided_json='{"type":["object","string"]}'),
        SamplingParams(regular_constraint=r"[{\"]+"),
    ):
        allowed = vocabulary.allowed(vocabulary.matchers.open(params, NOTHING))
        assert {vocabulary.tokens[i] for i in allowed} == {b"{", b'"'}


def test_a_tokenizer_whose_tokens_are_no_bytes_is_refused(tmp_path):
    """Its text depends on neighbours: an output would not be what the constraint thinks that it is."""
    tokenizer = load_tokenizer(str(tokenizers.word_piece(tmp_path / "model")))
    with pytest.raises(NotImplementedError, match="depends on their neighbours"):
        Matchers(tokenizer, [2])

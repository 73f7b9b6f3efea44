"""Long texts are tokenized in parts, and have the tokens of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.tokenizers import CORPUS
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lightllm.tokenizer import cuts
from lightllm.tokenizer.json_backend import JsonBackend
from lightllm.tokenizer.special_tokens import SpecialTokens

REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA_3 = rf"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{REST}"
QWEN_2 = LLAMA_3.replace("{1,3}", "")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{REST}"
)
DEEPSEEK_3 = (
    r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*" + REST,
)  # fmt: skip


def by_regex(*patterns: str) -> Any:
    """Pieces as these regular expressions make them in turn, as bytes."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def gpt_2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


KINDS: dict[str, tuple[Any, Any]] = {
    "gpt-2": (None, gpt_2()), "llama-3": (None, by_regex(LLAMA_3)), "qwen-2": (normalizers.NFC(), by_regex(QWEN_2)),
    "gpt-4o": (None, by_regex(GPT_4O)), "deepseek-3": (None, by_regex(*DEEPSEEK_3)),
    "starcoder": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt_2()])),
}  # fmt: skip
"""Normalizer and pre-tokenizer."""
ADDED = [AddedToken("<s>", special=True), AddedToken("<|user|>", special=True), AddedToken("zero", single_word=True),
         AddedToken("<mask>", lstrip=True), AddedToken("  ", normalized=False)]  # fmt: skip


def trained(
    normalizer: Any, pre_tokenizer: Any, added: list[AddedToken] = ADDED, model: Any = None
) -> Tokenizer:
    tokenizer = Tokenizer(model or models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens(added)
    start = tokenizer.token_to_id("<s>")
    if start is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", start)]
        )
    return tokenizer


@pytest.fixture(scope="module", params=KINDS)
def backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JsonBackend]:
    file: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained(*KINDS[request.param]).save(str(file))
    yield JsonBackend(file, SpecialTokens({}, (), {}, None, None))


words = st.sampled_from(
    ["The", "quick", "brown", "ABC", "aBc", "a", "I", "zero", "don't", "WE'LL", "it's", "it’s", "'s", "fox's's", "ſ", "é", "e\u0301",
     "\u0301", "нет", "你好", "こ", "ー", "한", "नमस्ते", "🙂", "\u200d", "7", "1234567", "x1", "1x", "_", "-", "/", "//\n", "...", "!a", "[b",
     "{", "<s>", "<|user|>", "<mask>", "Ġ", "Ċ", "\ufeff", "\xa0", "K"]
)  # fmt: skip
spaces = st.sampled_from(
    [
        " ",
        " ",
        " ",
        "",
        "  ",
        "   ",
        "\n",
        " \n",
        "\n ",
        "\n\n",
        "\r\n",
        "\t",
        " \t ",
        "\xa0",
        "\u3000",
        "\u2028",
    ]
)
texts = st.lists(st.tuples(words, spaces), max_size=24).map(lambda pairs: "".join(map("".join, pairs)))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=texts | st.text(max_size=30), size=st.sampled_from([1, 1, 5]))
@example(text="a a  a <mask> a zero zero a", size=1)
@example(text="ABC DEF gh I'LL a", size=1)
def test_parts_have_the_tokens_of_the_whole(backend: JsonBackend, text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "PART_CHARACTERS", size)
        patch.setattr("lightllm.tokenizer.json_backend._LONG", 0)
        assert "".join(cuts.parts(text)) == text
        for special in (False, True):
            assert backend.encode(text, special) == backend._encode(text, special)


def test_a_long_text_is_cut(backend: JsonBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(CORPUS) * 100
    seen, encode = [], backend._encode_all
    monkeypatch.setattr(
        backend, "_encode_all", lambda parts, special: (seen.extend(parts), encode(parts, special))[1]
    )
    assert backend.encode(text, True) == encode([text], True)[0]
    assert "".join(seen) == text and len(seen) > 3
    assert all(cuts.PART_CHARACTERS < len(part) < 2 * cuts.PART_CHARACTERS for part in seen[:-1])
    seen.clear()
    backend.encode("word " * 1000, True)
    assert len(seen) == 1


OTHERS: dict[str, Tokenizer] = {
    "another normalizer": trained(normalizers.Lowercase(), gpt_2()),
    "a space in front": trained(None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "pieces of words and spaces": trained(None, by_regex(r"[\p{L} ]+|\s+")),
    "an unknown alternative": trained(None, by_regex(LLAMA_3 + r"|\w+ \w+")),
    "one that looks back": trained(None, by_regex(rf"(?<=a) b|{LLAMA_3}")),
    "words in capitals are in no piece": trained(None, by_regex(GPT_4O.split("|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}")[0] + REST)),
    "nothing ends a piece": trained(None, by_regex(r"\p{N}{1,3}")),
    "what matches goes": trained(None, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_2), "removed"), gpt_2()])),
    "what does not match is the piece": trained(None, pre_tokenizers.Split(Regex(QWEN_2), "isolated", invert=True)),
    "split at a text": trained(None, pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), gpt_2()])),
    "bytes first": trained(
        None, pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(False, use_regex=False), pre_tokenizers.Split(Regex(QWEN_2), "isolated")])
    ),
    "sentencepiece": trained(None, pre_tokenizers.Metaspace()),
    "a token with a space in it": trained(None, gpt_2(), [AddedToken("<tool call>")]),
    "a token that takes the space behind it": trained(None, gpt_2(), [AddedToken("zero", rstrip=True)]),
    "a token that must follow no letter": trained(None, gpt_2(), [AddedToken(" b", single_word=True)]),
    "chance": trained(None, gpt_2(), model=models.BPE(dropout=0.1)),
    "no pieces": trained(None, pre_tokenizers.Sequence([])),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_known_is_not_cut(kind: str) -> None:
    assert not cuts.has_cuts(OTHERS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_known_kinds_are_cut(kind: str) -> None:
    assert cuts.has_cuts(trained(*KINDS[kind]))


def test_other_models_are_not_cut() -> None:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = gpt_2()
    assert not cuts.has_cuts(tokenizer)

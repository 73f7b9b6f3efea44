"""Where a text may be cut, so that its parts, tokenized one after the other, have the tokens of the whole.

Parts of some thousand characters are tokenized in two thirds of the time of the whole, because what the library makes on the way stays in
the processor's caches. A cut lies between a word and a space with another word behind it, both in ASCII letters, where

    the normalizer   is none, or NFC, which changes neither
    added tokens     have no letter before a space, take no space behind them, and none begins with a space that must follow no letter
    pre-tokenizer    ends a piece there: regular expressions whose every alternative is known (`_ALTERNATIVES`) not to go on from a letter
                     to a space, nor to look back, and of which one takes all letters
    model            is BPE without chance, which reads each piece for itself

For any other tokenizer there is no cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import tokenizers

PART_CHARACTERS = 6000
"""At least, of every part but the last."""
_CUT = re.compile(r"[A-Za-z](?= [A-Za-z])")
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_WORDS = {
    r" ?\p{L}+", r"\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
}  # fmt: skip
"""Alternatives that take every ASCII letter which no other one takes."""
_SMALL = {rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{ending}" for ending in ("", f"{_ENDINGS}?")}
_CAPITALS = {rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{ending}" for ending in ("", f"{_ENDINGS}?")}
"""The two together do."""
_ALTERNATIVES = {
    *_WORDS, *_SMALL, *_CAPITALS, _ENDINGS, r"'(?i:[sdmt]|ll|ve|re)", *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
    r"\p{N}", r"\p{N}+", r" ?\p{N}+", *(rf"\p{{N}}{{1,{most}}}" for most in (2, 3)), r"\d", r"\d+", *(rf"\d{{1,{most}}}" for most in (2, 3)),
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r" ?[\p{P}\p{S}]+[\r\n]*",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+", "[一-龥぀-ゟ゠-ヿ]+", "[一-龥ࠀ-一가-퟿]+", r"[\r\n]", r"[\r\n]+",
    r"\s*[\r\n]", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+$", r"\s+",
}  # fmt: skip
"""Of the pre-tokenizers of GPT-2, GPT-4, GPT-4o, Llama 3, Qwen, DeepSeek, Mistral (tekken), GLM and what follows them."""


def has_cuts(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether its texts may be cut by `parts`."""
    model = tokenizer.model
    if not isinstance(model, tokenizers.models.BPE) or model.dropout:
        return False
    if tokenizer.normalizer is not None and not _is_nfc(_state(tokenizer.normalizer)):
        return False
    for token in tokenizer.get_added_tokens_decoder().values():
        follows_no_letter = token.single_word and token.content[:1].isspace()
        if token.rstrip or follows_no_letter or re.search(r"[A-Za-z]\s", token.content):
            return False
    steps = [] if tokenizer.pre_tokenizer is None else [*_steps(_state(tokenizer.pre_tokenizer))]
    return all(map(_keeps_cuts, steps)) and any(map(_ends_words, steps)) and not _reads_bytes(steps)


def parts(text: str) -> Iterator[str]:
    """The text, in one part or many."""
    start = 0
    while cut := _CUT.search(text, start + PART_CHARACTERS):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]


def _state(step: Any) -> Any:
    """As tokenizer.json states it."""
    return json.loads(step.__getstate__())


def _is_nfc(state: Any) -> bool:
    """Or nothing."""
    if state["type"] == "Sequence":
        return all(map(_is_nfc, state["normalizers"]))
    return bool(state["type"] == "NFC")


def _steps(state: Any) -> Iterator[Any]:
    if state["type"] == "Sequence":
        for step in state["pretokenizers"]:
            yield from _steps(step)
    else:
        yield state


def _keeps_cuts(step: Any) -> bool:
    """Whether the step does the same to both sides of a cut as to the whole."""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    if step["type"] == "Split":
        known = step["behavior"] == "Isolated" and not step["invert"]
        return known and set(_alternatives(step)) <= _ALTERNATIVES
    return step["type"] == "Digits"


def _ends_words(step: Any) -> bool:
    """Whether it makes a piece end at each cut."""
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex", True))
    found = set(_alternatives(step)) if step["type"] == "Split" else set()
    return bool(found & _WORDS or (found & _SMALL and found & _CAPITALS))


def _reads_bytes(steps: list[Any]) -> bool:
    """Whether a step reads what ByteLevel has made of spaces, which is a letter."""
    return any(step["type"] == "ByteLevel" for step in steps[:-1])


def _alternatives(step: Any) -> list[str]:
    """Of a regular expression, at its outermost level; a plain text is none that is known."""
    pattern = step["pattern"].get("Regex")
    if pattern is None:
        return [" "]
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")
    found, depth, in_class, start = [], 0, False, 0
    tokens = re.finditer(r"\\.|[][()|]", pattern, re.DOTALL)
    for token in tokens:
        sign = token[0]
        if in_class:
            in_class = sign != "]"
        elif sign == "[":
            in_class = True
        elif sign in "()":
            depth += 1 if sign == "(" else -1
        elif sign == "|" and not depth:
            found.append(pattern[start : token.start()])
            start = token.end()
    return [*found, pattern[start:]]

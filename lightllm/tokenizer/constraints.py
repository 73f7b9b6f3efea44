"""Constrained decoding: which tokens may come next, so that an output matches a regular expression, a grammar or a JSON
schema.

The optional package llguidance (extra "constraints") does the work. The Http Server and the offline `LLM` call
`check_constraint` before a request is accepted; rank 0 of the Model Backend asks `Matchers` for a matcher a request.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lightllm.errors import InvalidParameter
from lightllm.sampling_params import CONSTRAINTS, SamplingParams
from lightllm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_JSON_OPTIONS = {"whitespace_pattern": r" |\r?\n[ \t]{0,64}"}
"""One space, or a new line and its indentation: some models would write spaces for ever."""
_LABELS = {
    "regular_constraint": ("regular_expression", "parse_pattern_error"),
    "guided_grammar": ("guided_grammar", "compile_grammar_error"),
    "guided_json": ("guided_json", "compile_grammar_error"),
}
"""How LightLLM's messages name a constraint, and what is wrong with it."""
_REGEX_ERROR = re.compile(r"(?:^error|\(in regex\)): (?!regex parse error)(.*)$", re.MULTILINE)
_KEPT_CHECKS = 256
_KEPT_MATCHERS = 64
_SHOWN = 60
"""Characters of a constraint, and five times as many of the library's message, that a client is told."""


def is_installed() -> bool:
    """Whether the package that constraints need is here."""
    return importlib.util.find_spec("llguidance") is not None


def check_constraint(params: SamplingParams, mode: str = "llguidance") -> None:
    """Raises `InvalidParameter` unless the constraint of a verified `params`, if it has one, can be obeyed.

    mode: the option --output_constraint_mode. Takes about a millisecond for ordinary constraints, and releases the GIL; the outcome is kept.
    """
    name, text = _constraint(params)
    if not name:
        return
    if mode == "none":
        raise InvalidParameter(
            f"{name} is not available: this server was started with --output_constraint_mode none; leave the "
            "constraint out, or the option",
            param=name,
        )
    if not is_installed():
        raise InvalidParameter(
            f"{name} needs a package that this server does not have: pip install 'lightllm[constraints]'",
            param=name,
        )
    error = _check(name, text)
    if error:
        label, problem = _LABELS[name]
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
        raise InvalidParameter(f"{label} '{shown}' has {problem}: {error}", param=name)


def _constraint(params: SamplingParams) -> tuple[str, str]:
    """The name of the field that holds it, and its text; twice "" if there is none."""
    return next(((name, text) for name in CONSTRAINTS if (text := getattr(params, name))), ("", ""))


@functools.lru_cache(_KEPT_CHECKS)
def _check(name: str, text: str) -> str:
    """What is wrong with a constraint; "" if nothing is."""
    from llguidance import LLMatcher

    try:
        failed, messages = LLMatcher.validate_grammar_with_warnings(
            _grammar(name, text), None, limits=_limits()
        )
        message = messages[0] if failed else ""
    except Exception as error:  # the library's parsers raise what they like
        message = str(error) or type(error).__name__
    return _readable(message)


def _readable(message: str) -> str:
    """One line. Of a regular expression's error, which is drawn over several, only what is wrong."""
    wrong = _REGEX_ERROR.search(message)
    message = wrong[1] if wrong else message.removesuffix("<non-verbose/>")
    return " ".join(message[: 5 * _SHOWN].split())


def _grammar(name: str, text: str) -> str:
    """As the library wants it. Raises whatever the library raises for a text that it cannot read."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if name == "regular_constraint":
        return LLMatcher.grammar_from_regex(text)
    if name == "guided_grammar":
        return LLMatcher.grammar_from_lark(any_to_lark(text))
    return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]


def _limits() -> Any:
    from llguidance import LLParserLimits

    return LLParserLimits(verbose_errors=False)


class Matchers:
    """Makes matchers for one model: a matcher knows what its request has said, and so what it may say next.

    Safe to use from several threads; a matcher is not.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        """Takes about half a second for 128,000 tokens, with the GIL held, and 50 MB. `eos_token_ids`: at least one; each
        of them may end an output. Raises `NotImplementedError` for a tokenizer whose tokens are not bytes."""
        from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper

        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, eos_token_ids)), eos_token=list(eos_token_ids)
        )
        self._executor = LLExecutor(min(8, os.cpu_count() or 1))
        self._kept: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self.words = -(-int(self._tokenizer.vocab_size) // 32)
        """int32 words of a token mask."""

    def open(self, params: SamplingParams, said: np.ndarray) -> LLMatcher:
        """A matcher for a request with a constraint that has said these tokens already (int32). It may be in an error
        state."""
        from llguidance import LLMatcher

        key = _constraint(params)
        with self._lock:
            first = self._kept.get(key)
            if first is not None:
                self._kept.move_to_end(key)
        if first is None:
            first = LLMatcher(self._tokenizer, _grammar(*key), log_level=0, limits=_limits())
            with self._lock:
                self._kept[key] = first
                if len(self._kept) > _KEPT_MATCHERS:
                    self._kept.popitem(last=False)
        matcher = first.deep_copy()
        if len(said):
            matcher.consume_tokens(said.tolist())
        return matcher

    def masks(self, matchers: Sequence[LLMatcher]) -> np.ndarray:
        """int32 [len(matchers), words]: bit t % 32 of word t // 32 says whether token t may come. For a matcher in an
        error state, which this may lead to, it means nothing."""
        masks = np.zeros((len(matchers), self.words), dtype=np.int32)
        if len(matchers) == 1:
            matchers[0].unsafe_compute_mask_ptr(masks.ctypes.data, masks.nbytes)
        else:
            self._executor.unsafe_compute_mask_ptr(
                list(zip(matchers, range(len(matchers)))),
                masks.ctypes.data,
                masks.nbytes // len(masks),
                len(masks),
            )
        return masks


class _Vocabulary:
    """What the library asks of a tokenizer: the bytes of its tokens, and how the model would write a text. Where only one
    text can come, the mask allows only the tokens that the model would write it with."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        tokens = tokenizer.all_token_bytes()
        if tokens is None:
            raise NotImplementedError("the text of this model's tokens depends on their neighbours")
        self.eos_token_id = eos_token_ids[0]
        self.tokens = tokens + [b""] * (max(eos_token_ids) + 1 - len(tokens))
        self.special_token_ids = sorted({*tokenizer.special_ids, *eos_token_ids})
        self._tokenizer = tokenizer
        self._special = frozenset(self.special_token_ids)
        self._single = {
            token: i for i, token in enumerate(tokens) if len(token) == 1 and i not in self._special
        }

    def __call__(self, text: str) -> list[int]:
        """Must not raise: the library cannot pass an exception on from here."""
        if not isinstance(text, str):
            raise TypeError("texts only")
        for lead in ("", "\n"):  # many tokenizers put a space before a text, but not behind a new line
            token_ids = self._tokenizer.encode(lead + text, add_special_tokens=False)
            found = self._end_of(token_ids, text.encode())
            if found is not None:
                return found
        return [self._single[part] for byte in text.encode() if (part := bytes([byte])) in self._single]

    def _end_of(self, token_ids: list[int], text: bytes) -> list[int] | None:
        """The last tokens, if they are this text and nothing else."""
        size = 0
        for start in range(len(token_ids), -1, -1):
            if size == len(text):
                found = token_ids[start:]
                if b"".join(self.tokens[i] for i in found) == text and self._special.isdisjoint(found):
                    return found
                return None
            if start:
                size += len(self.tokens[token_ids[start - 1]])
        return None

"""Constrained decoding: which tokens may come next, so that an output matches a regular expression, a grammar or a JSON
schema.

The optional package llguidance (extra "constraints") does the work. The Http Server and the offline `LLM` call
`check_constraint` before a request is accepted; rank 0 of the Model Backend asks `Matchers` for a matcher a request.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from lightllm.errors import InvalidParameter
from lightllm.sampling_params import CONSTRAINTS, SamplingParams
from lightllm.tokenizer import constraint_limits
from lightllm.tokenizer.key_patterns import names_of
from lightllm.tokenizer.schema_rewriting import rewritten
from lightllm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

os.environ["RUST_LIB_BACKTRACE"] = "0"
"""The library makes a backtrace a level of every error; with RUST_BACKTRACE set that takes seconds."""
_STACK_BYTES = 128 << 20
"""The library recurses. Only what is used of a stack takes memory."""
_JSON_OPTIONS = {"whitespace_pattern": r" |\r?\n[ \t]{0,64}"}
"""One space, or a new line and its indentation: some models would write spaces for ever."""
_NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Where only one text can come, the model chooses among the tokens that it can be written with, as elsewhere; the library
would choose them, and work out all of the text first, however long it is."""
_ALONE_SECONDS = 0.0005
"""For which one thread makes masks before others help."""
_LABELS = {
    "regular_constraint": ("regular_expression", "parse_pattern_error"),
    "guided_grammar": ("guided_grammar", "compile_grammar_error"),
    "guided_json": ("guided_json", "compile_grammar_error"),
}
"""How LightLLM's messages name a constraint, and what is wrong with it."""
_REGEX_ERROR = re.compile(r"(?:^error|\(in regex\)): (?!regex parse error)(.*)$", re.MULTILINE)
_KEPT_CHECKS = 256
_KEPT_MATCHERS = 16
_COPIES = 16
"""Requests that share one automaton, which grows with what they say, to 25 MB and rarely twice as much."""
_SHOWN = 60
"""Characters of a constraint, and five times as many of the library's message, that a client is told."""


def is_installed() -> bool:
    """Whether the package that constraints need is here."""
    return importlib.util.find_spec("llguidance") is not None


def deep_threads(count: int, name: str) -> ThreadPoolExecutor:
    """Threads whose stack is deep enough for any constraint that is within the limits."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    started = threading.Barrier(count)
    before = threading.stack_size(_STACK_BYTES)
    try:
        list(pool.map(lambda _: started.wait(), range(count)))
    finally:
        threading.stack_size(before)
    return pool


@functools.cache
def check_threads() -> ThreadPoolExecutor:
    """Where constraints are checked. The library releases the GIL."""
    return deep_threads(2, "check-constraints")


def check_constraint(params: SamplingParams, mode: str = "llguidance") -> None:
    """Raises `InvalidParameter` unless the constraint of a verified `params`, if it has one, can be obeyed.

    mode: the option --output_constraint_mode. Takes some milliseconds for ordinary constraints, 0.4 s at most; the
    outcome is kept. Waits for one of `check_threads`; who is in one of them calls `check_here`.
    """
    if params.constrained:
        check_threads().submit(check_here, params, mode).result()


def check_here(params: SamplingParams, mode: str) -> None:
    """`check_constraint` in the present thread."""
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
    """What is wrong with a constraint; "" if nothing is. A matcher over the 256 bytes is made, and asked what may come first:
    some errors show up only then."""
    error = constraint_limits.problem(name, text)
    if error:
        return error
    try:
        matcher = _matcher(_bytes_tokenizer(), name, text)
        if not matcher.is_error():
            matcher.compute_bitmask()
    except Exception as error:  # the library's parsers raise what they like
        return _readable(str(error) or type(error).__name__)
    return _readable(matcher.get_error())


@functools.cache
def _bytes_tokenizer() -> LLTokenizer:
    from llguidance import LLTokenizer

    return LLTokenizer("byte")


def _readable(message: str) -> str:
    """One line. Of a regular expression's error, which is drawn over several, only what is wrong."""
    wrong = _REGEX_ERROR.search(message)
    message = wrong[1] if wrong else message.removesuffix("<non-verbose/>")
    message = " ".join(message[: 5 * _SHOWN].split())
    return "nothing can match it" if message == "NoExtensionBias" else message


def _matcher(tokenizer: LLTokenizer, name: str, text: str) -> LLMatcher:
    """It may be in an error state. Raises whatever the library raises for a text that it cannot read."""
    return _matcher_of(tokenizer, _grammar(name, text), name == "guided_json")


def _matcher_of(tokenizer: LLTokenizer, grammar: str, json_limits: bool) -> LLMatcher:
    from llguidance import LLMatcher, LLParserLimits

    limits = constraint_limits.JSON_PARSER_LIMITS if json_limits else constraint_limits.PARSER_LIMITS
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**limits))


def _grammar(name: str, text: str) -> str:
    """As the library wants it: several grammars as JSON, the first of which is the whole."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if name == "guided_json":
        return _json_grammar(rewritten(text, _names_of))
    if name == "regular_constraint":
        (pattern,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
        return LLMatcher.grammar_from_lark(pattern["lark_grammar"] + _NO_FORCING)
    lark = _with_schemas_rewritten(text) if constraint_limits.is_lark(text) else gbnf_to_lark(text)
    return LLMatcher.grammar_from_lark(lark + _NO_FORCING)


def _json_grammar(schema: str) -> str:
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
    head, mark, rest = grammar.partition('"grammars":[')
    start = json.dumps({"lark_grammar": "start: @json_schema" + _NO_FORCING})
    return f"{head}{mark}{start},{rest}"


def _with_schemas_rewritten(lark: str) -> str:
    """A grammar in Lark, each schema behind a %json in it as `rewritten` returns it."""
    if constraint_limits.is_texts(lark):
        return lark
    first, *others = lark.split("%json")
    for other in others:
        schema, end = json.JSONDecoder().raw_decode(start := other.lstrip())
        first += f"%json {rewritten(json.dumps(schema), _names_of)}{start[end:]}"
    return first


@functools.lru_cache(_KEPT_CHECKS)
def _names_of(pattern: str) -> list[str] | None:
    """For `rewritten`, which must come to the same wherever it is done."""
    return names_of(pattern, lambda schema: _matcher_of(_bytes_tokenizer(), _json_grammar(schema), True))


class Matcher:
    """What one request has said, and so what it may say next. Not safe to use from several threads."""

    def __init__(self, key: tuple[str, str], inner: LLMatcher, said: list[int]) -> None:
        self.key = key
        self.inner = inner
        self.said = said
        self.shared = True
        """Whether others have made its automaton grow."""

    def consume_token(self, token_id: int) -> bool:
        """Whether it was allowed; if not the matcher is in an error state from now on."""
        self.said.append(token_id)
        return self.inner.consume_token(token_id)

    def consume_tokens(self, token_ids: list[int]) -> bool:
        self.said += token_ids
        return self.inner.consume_tokens(token_ids)

    def is_error(self) -> bool:
        return self.inner.is_error()

    def get_error(self) -> str:
        return self.inner.get_error()

    def is_accepting(self) -> bool:
        """Whether the output may end here."""
        return self.inner.is_accepting()

    def is_stopped(self) -> bool:
        """Whether the output is complete, or the matcher in an error state."""
        return self.inner.is_stopped()


class Matchers:
    """Makes matchers for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        """Takes about half a second for 128,000 tokens, with the GIL held, and 50 MB. `eos_token_ids`: at least one; each
        of them may end an output. Raises `NotImplementedError` for a tokenizer whose tokens are not bytes."""
        from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper

        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, eos_token_ids)), eos_token=list(eos_token_ids)
        )
        self._executor = LLExecutor(min(8, os.cpu_count() or 1))
        self._kept: OrderedDict[tuple[str, str], tuple[LLMatcher, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.words = -(-int(self._tokenizer.vocab_size) // 32)
        """int32 words of a token mask."""

    def open(self, params: SamplingParams, said: np.ndarray) -> Matcher:
        """A matcher for a request with a constraint that has said these tokens already (int32). It may be in an error
        state. Call it in one of `deep_threads`."""
        key = _constraint(params)
        with self._lock:
            first, copies = self._kept.pop(key, (None, 0))
        if first is None:
            first = _matcher(self._tokenizer, *key)
        matcher = Matcher(key, first.deep_copy(), [])
        if copies + 1 < _COPIES:
            with self._lock:
                self._kept[key] = first, copies + 1
                if len(self._kept) > _KEPT_MATCHERS:
                    self._kept.popitem(last=False)
        if len(said):
            matcher.consume_tokens(said.tolist())
        return matcher

    def masks(self, matchers: Sequence[Matcher]) -> np.ndarray:
        """int32 [len(matchers), words]: bit t % 32 of word t // 32 says whether token t may come. For a matcher in an
        error state, which this may lead to, it means nothing."""
        masks = self._masks(matchers)
        full = [i for i, matcher in enumerate(matchers) if matcher.shared and _is_full(matcher)]
        if full:
            for i in full:
                self._make_its_own(matchers[i])
            masks[full] = self._masks([matchers[i] for i in full])
        return masks

    def _masks(self, matchers: Sequence[Matcher]) -> np.ndarray:
        """One after the other: most take some 10 us, and threads as long to wake up, much longer on a busy machine. Those
        that are left when the time for that is up, at once."""
        masks = np.zeros((len(matchers), self.words), dtype=np.int32)
        size, until = self.words * masks.itemsize, time.perf_counter() + _ALONE_SECONDS
        for i, matcher in enumerate(matchers):
            if i and time.perf_counter() > until:
                rest = [(other.inner, i + n) for n, other in enumerate(matchers[i:])]
                self._executor.unsafe_compute_mask_ptr(rest, masks.ctypes.data, size, len(masks))
                break
            matcher.inner.unsafe_compute_mask_ptr(masks.ctypes.data + i * size, size)
        return masks

    def _make_its_own(self, matcher: Matcher) -> None:
        """A new automaton for a matcher, with nothing in it that others have said."""
        with self._lock:
            self._kept.pop(matcher.key, None)
        matcher.inner = _matcher(self._tokenizer, *matcher.key)
        matcher.shared = False
        if matcher.said:
            matcher.inner.consume_tokens(matcher.said)


def _is_full(matcher: Matcher) -> bool:
    """Whether the automaton has as many states as it may."""
    return matcher.is_error() and "too many states" in matcher.get_error()


class _Vocabulary:
    """What the library asks of a tokenizer. It encodes nothing (`_NO_FORCING`), so there is only the plainest way."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        tokens = tokenizer.all_token_bytes()
        if tokens is None:
            raise NotImplementedError("the text of this model's tokens depends on their neighbours")
        self.eos_token_id = eos_token_ids[0]
        self.tokens = tokens + [b""] * (max(eos_token_ids) + 1 - len(tokens))
        self.special_token_ids = sorted({*tokenizer.special_ids, *eos_token_ids})
        self._single = {token: i for i, token in enumerate(tokens) if len(token) == 1}

    def __call__(self, text: bytes) -> list[int]:
        return [self._single[part] for byte in text if (part := bytes([byte])) in self._single]

"""Matchers: what each request of a batch may say next, as masks over the vocabulary."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from lightllm.constraints.exponents import ExponentPlace, ExponentTokens
from lightllm.constraints.grammars import (
    Constraint,
    compile_threads,
    compiled,
    constraint_of,
    grammar_of,
    make_matcher,
)
from lightllm.constraints.prepared import Prepared, Taken
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_ALONE_SECONDS = 0.0005
"""For which one thread makes masks before others help."""
_KEPT_MATCHERS = 16
_COPIES = 16
"""Requests that share one automaton: it grows with their outputs, typically to 25 MB, at most to about 50."""
_COPIES_BEFORE = 8
"""After so many its successor is made."""
_MOST_COPIES = 64
"""As many share it while its successor is being made."""


@dataclasses.dataclass
class _Kept:
    """An automaton, of which requests have copies that share it."""

    first: LLMatcher
    copies: int = 0
    successor: Future[LLMatcher] | None = None
    expected: int = 0
    """Requests that were told that it is there, and have not come."""
    grammar: str = ""
    """Of which their own would be made, if others push this one out before."""


class Matcher:
    """What one request has said, and so what it may say next. Not safe to use from several threads."""

    def __init__(self, key: Constraint, inner: LLMatcher, said: list[int], tokens: Sequence[bytes]) -> None:
        """tokens: the bytes of each."""
        self.key = key
        self.inner = inner
        self.said = said
        self.shared = True
        """Whether others have made its automaton grow."""
        only_json = key.name == "guided_json" and not key.prefix
        self.exponent = ExponentPlace() if only_json else None
        self._tokens = tokens

    def consume_token(self, token_id: int) -> bool:
        """Whether it was allowed; if not the matcher is in an error state from now on."""
        self.said.append(token_id)
        if self.exponent is not None:
            self.exponent.push(self._tokens[token_id])
        return self.inner.consume_token(token_id)

    def consume_tokens(self, token_ids: list[int]) -> bool:
        self.said += token_ids
        if self.exponent is not None:
            self.exponent.push(b"".join(self._tokens[token_id] for token_id in token_ids))
        return self.inner.consume_tokens(token_ids)

    def is_error(self) -> bool:
        return self.inner.is_error()

    def get_error(self) -> str:
        return self.inner.get_error()


class Matchers:
    """Makes matchers for one model. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: Sequence[int]) -> None:
        """Takes about half a second for 128,000 tokens, with the GIL held, and 50 MB. `eos_token_ids`: at least one; each
        of them may end an output. Raises `NotImplementedError` for a tokenizer whose tokens are not bytes."""
        from llguidance import LLExecutor, LLTokenizer, TokenizerWrapper

        vocabulary = _Vocabulary(tokenizer, eos_token_ids)
        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=list(eos_token_ids))
        self._tokens = vocabulary.tokens
        self._executor = LLExecutor(min(8, os.cpu_count() or 1))
        self._kept: OrderedDict[Constraint, _Kept] = OrderedDict()
        self._prepared = Prepared(self._make)
        self._lock = threading.RLock()
        """Of both. What is done at once tells so in the thread that asked."""
        self.words = -(-int(self._tokenizer.vocab_size) // 32)
        """int32 words of a token mask."""
        self._exponents = ExponentTokens(self._tokens, self.words)

    def prepare(self, constraint: Constraint, grammar: str) -> Future[LLMatcher] | None:
        """Has the matcher made for requests with this constraint, which `open` is called for later: done when it is there,
        None if it is; cancelled if nobody asks any more before it is its turn. Who waits asks again every ten seconds or so.
        grammar: the constraint's `grammar_of`."""
        with self._lock:
            kept = self._kept.get(constraint)
            if kept is not None:
                self._kept.move_to_end(constraint)
                kept.expected, kept.grammar = kept.expected + 1, grammar
                return None
            return self._prepared.ask(constraint, grammar)

    def open(self, params: SamplingParams, said: np.ndarray) -> Matcher:
        """A matcher for a request with a constraint that has said these tokens already (int32). It may be in an error
        state. Call it in one of `deep_threads`."""
        key = constraint_of(params)
        with self._lock:
            kept = self._kept.pop(key, None)
            prepared = self._prepared.take(key) if kept is None else None
        if kept is None:
            kept = self._first(key, prepared)
        elif kept.copies >= _COPIES and kept.successor is not None:
            if kept.successor.done() or kept.copies >= _MOST_COPIES:
                kept = _Kept(kept.successor.result(), expected=kept.expected, grammar=kept.grammar)
        matcher = Matcher(key, kept.first.deep_copy(), [], self._tokens)
        kept.copies += 1
        kept.expected = max(0, kept.expected - 1)
        if kept.copies >= _COPIES_BEFORE and kept.successor is None and not kept.first.is_error():
            kept.successor = self._make(key, grammar_of(key))  # which is known: it was made of it
        with self._lock:
            self._keep(key, kept)
        if len(said):
            matcher.consume_tokens(said.tolist())
        return matcher

    def _first(self, key: Constraint, prepared: Taken | None) -> _Kept:
        if prepared is None:
            return _Kept(make_matcher(self._tokenizer, *key))
        return _Kept(prepared.done.result(), expected=prepared.others + 1, grammar=prepared.grammar)

    def _keep(self, key: Constraint, kept: _Kept) -> None:
        """The lock is held."""
        asked = self._prepared.take(key)  # by a request that came while this was opened
        if asked is not None:
            kept.expected, kept.grammar = kept.expected + asked.others + 1, asked.grammar
            kept.successor = kept.successor or asked.done
        self._kept[key] = kept
        if len(self._kept) > _KEPT_MATCHERS:
            old, gone = self._kept.popitem(last=False)
            if gone.expected:
                self._prepared.make_again(old, gone.grammar, gone.expected)

    def _make(self, constraint: Constraint, grammar: str) -> Future[LLMatcher]:
        return compile_threads().submit(compiled, self._tokenizer, constraint, grammar)

    def masks(self, matchers: Sequence[Matcher]) -> np.ndarray:
        """int32 [len(matchers), words]: bit t % 32 of word t // 32 says whether token t may come. For a matcher in an
        error state, which this may lead to, it means nothing."""
        masks = self._masks(matchers)
        full = [i for i, matcher in enumerate(matchers) if matcher.shared and _is_full(matcher)]
        if full:
            for i in full:
                self._make_its_own(matchers[i])
            masks[full] = self._masks([matchers[i] for i in full])
        for mask, matcher in zip(masks, matchers, strict=True):
            if matcher.exponent is not None:
                self._exponents.restrict(mask, matcher.exponent)
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
            kept = self._kept.pop(matcher.key, None)
            if kept is not None and kept.expected:
                self._prepared.make_again(matcher.key, kept.grammar, kept.expected)
        made = None if kept is None else kept.successor
        if made is not None and made.done():
            matcher.inner = made.result()
        else:
            matcher.inner = make_matcher(self._tokenizer, *matcher.key)
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

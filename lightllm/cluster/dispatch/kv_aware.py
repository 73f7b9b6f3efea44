"""As `prefix_aware`, but by what workers say that they have cached (`protocol/kv_events.py`), not by what they were sent.

A worker that tells nothing (another server, or its events have not come yet) is judged by what it was sent. So are, for a moment,
the prompts that were sent last: their blocks are told only when they are computed, and a burst of one prompt must not spread
over all workers meanwhile.
"""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Iterable, Sequence

from lightllm.cluster.ask import BLOCK_TOKENS, Ask
from lightllm.cluster.dispatch.prefix_aware import SLACK_TOKENS, PrefixAware, cheapest
from lightllm.cluster.dispatch.prefix_index import leading
from lightllm.cluster.dispatch.prompt_map import NOTHING, PromptMap
from lightllm.cluster.worker import Worker
from lightllm.protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent, ToldPrompt

_UNDER_WAY = 16
"""Prompts of one worker that count as cached before it says so."""


@dataclasses.dataclass
class _Prompt:
    blocks: tuple[int, ...]
    answered: bool = False
    """It is computed: what the worker tells next counts."""


class KvAware:
    asks_prompts = True

    def __init__(self, rng: random.Random, slack: float = SLACK_TOKENS) -> None:
        self._rng = rng
        self._slack = slack
        self._prompts = PromptMap()
        self._stored: dict[str, set[int]] = {}
        """By worker: its blocks. Those that tell nothing are not in it."""
        self._recent: dict[str, deque[_Prompt]] = {}
        self._guessed = PrefixAware(rng, slack)

    # -- what workers tell

    def hear(self, url: str, events: Iterable[KvEvent]) -> None:
        """In their order, from the first one on or from one that clears all."""
        stored = self._stored.setdefault(url, set())
        recent = self._recent.get(url)
        if recent:
            self._recent[url] = deque((prompt for prompt in recent if not prompt.answered), _UNDER_WAY)
        for event in events:
            if isinstance(event, BlockStored):
                stored.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                stored.difference_update(event.block_hashes)
            else:
                assert isinstance(event, AllBlocksCleared)
                stored.clear()

    def lose_touch(self, url: str) -> None:
        """What it told may not be true any more."""
        self._stored.pop(url, None)

    def blocks(self, url: str) -> int | None:
        """How many blocks it has; None: it does not tell."""
        stored = self._stored.get(url)
        return None if stored is None else len(stored)

    # -- the policy

    def choose(self, workers: Sequence[Worker], ask: Ask) -> Worker:
        return cheapest(workers, ask, self._depths(workers, ask), self._slack, self._rng)

    def cached_tokens(self, worker: Worker, ask: Ask) -> int:
        if worker.url not in self._stored:
            return self._guessed.cached_tokens(worker, ask)
        return BLOCK_TOKENS * self._depth(worker.url, ask, self._prompts.keys(ask))

    def sent(self, worker: Worker, ask: Ask) -> None:
        self._guessed.sent(worker, ask)
        if ask.blocks:
            self._recent.setdefault(worker.url, deque(maxlen=_UNDER_WAY)).append(_Prompt(ask.blocks))

    def learn(self, worker: Worker, ask: Ask, told: ToldPrompt) -> None:
        self._prompts.learn(ask, told)
        for prompt in self._recent.get(worker.url, ()):
            if prompt.blocks == ask.blocks:
                prompt.answered = True

    def gone(self, worker: Worker) -> None:
        self._guessed.gone(worker)
        self._stored.pop(worker.url, None)
        self._recent.pop(worker.url, None)

    def _depths(self, workers: Sequence[Worker], ask: Ask) -> dict[str, int]:
        silent = any(worker.url not in self._stored for worker in workers)
        depths = self._guessed.depths(ask) if silent else {}
        keys = self._prompts.keys(ask)
        for worker in workers:
            if worker.url in self._stored:
                depths[worker.url] = self._depth(worker.url, ask, keys)
        return depths

    def _depth(self, url: str, ask: Ask, keys: Sequence[int]) -> int:
        """keys: of the prompt's tokens, as far as they are known."""
        stored = self._stored[url]
        depth = leading(keys, lambda key: key == NOTHING or key in stored) if keys else 0
        if depth and keys[depth - 1] == NOTHING:
            depth = 0
        for prompt in self._recent.get(url, ()):
            depth = max(depth, _common(prompt.blocks, ask.blocks))
        return depth


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading blocks are the same: a key stands for all before it, too."""
    if not first or not second or first[0] != second[0]:
        return 0  # as of most
    places = range(min(len(first), len(second)))
    return leading(places, lambda place: first[place] == second[place])

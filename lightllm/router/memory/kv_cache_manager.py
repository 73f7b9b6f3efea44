"""Where the context of every running request lies: a prefix in the radix cache, the rest in slots of its own.

    [0, shared)        slots of the cache: others may read them too; the request locks their last node
    [shared, kv_len)   its own, in `TokenMemory`

A prompt enters the cache chunk by chunk, when the round of a chunk is planned; the slots change their owner, not their
place. What was generated enters when the request leaves its row. If the cache has the tokens of a chunk already (two
requests computed them in one round), the chunk and all that follows stay the request's own until it leaves: a row that
runs never has to be remapped, and duplicates are freed when they are not read any more.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from lightllm.ipc.kv_map import MAP_CELLS, Cells, KvMap
from lightllm.router.memory.radix_cache import CachedPrefix, RadixCache, common_length
from lightllm.router.memory.token_memory import TokenMemory
from lightllm.router.request import Request
from lightllm.router.scheduler_config import SchedulerConfig

EVICT_LEAST, EVICT_MOST = 1024, 8192
"""Cached tokens that are evicted at once: 1/128 of the memory within these bounds, but 1/64 of a small one. Evicting in
smaller amounts would fragment the memory, and happen in every round."""


class KvCacheManager:
    """Free + cached + in use = all slots. Evictable cache counts as free."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.cache = RadixCache()
        self.own = TokenMemory(
            config.max_total_token_num, config.max_rows, config.max_req_total_len, config.neighbouring_slots
        )
        slots = config.max_total_token_num
        self._evict_at_once = min(slots // 64, min(max(EVICT_LEAST, slots // 128), EVICT_MOST))
        self._enabled = config.prompt_cache
        self._worth_waiting = config.worth_waiting

    @property
    def available(self) -> int:
        """Slots that are not needed."""
        return self.own.free + self.cache.evictable

    @property
    def in_use(self) -> int:
        """Slots that requests need: their own, and what they lock in the cache."""
        return self.own.used + self.own.cached - self.cache.evictable

    # -- a request in a row

    def prefixes(self, group: list[Request]) -> tuple[list[CachedPrefix], int]:
        """(what is cached of each context, how much of all that is not locked, at most) for siblings that wait."""
        found: list[CachedPrefix] = []
        unlocked = 0
        for i, request in enumerate(group):
            if i and not request.output_ids and not group[0].output_ids:
                found.append(found[0])
                continue
            ids = request.all_ids()
            limit = self._match_limit(request, len(ids))
            found.append(self.cache.peek(ids[:limit]))
            unlocked += found[-1].length - found[-1].read
        return found, min(unlocked, self.cache.evictable)

    def open(self, request: Request) -> int:
        """The request has got a row and a context: locks what is cached of it; how many tokens that are."""
        limit = self._match_limit(request, len(request.context))
        node, shared = self.cache.match(request.context[:limit])
        self.cache.lock(node)
        request.node, request.shared = node, shared
        self.own.open(request.row, request.target - shared)
        return shared

    def extend(self, request: Request, kv_len: int, reserve: int) -> int:
        """The context length after all that others have put into the cache since; `reserve` slots stay available."""
        assert request.node is not None
        if kv_len != request.shared or not request.node.children:
            return kv_len
        limit = self._match_limit(request, len(request.context))
        node, more = self.cache.match(request.context[kv_len:limit], request.node)
        if not more:
            return kv_len
        before = self.cache.evictable
        self.cache.lock(node)
        if self.cache.evictable < before and self.available < reserve:
            self.cache.unlock(node)
            return kv_len
        self.cache.unlock(request.node)
        request.node = node
        request.shared += more
        return request.shared

    def slots(self, request: Request) -> np.ndarray:
        """int32 [kv_len]: the slots of the context, in order."""
        assert request.node is not None
        own = self.own.slots(request.row)
        return np.concatenate([self.cache.path_slots(request.node), own]) if request.shared else own

    def make_free(self, count: int) -> None:
        """Evicts until `count` slots are free, or nothing is left to evict. The caller has checked `available`."""
        if self.own.free < count and self.cache.evictable:
            missing = max(count - self.own.free, self._evict_at_once)
            self.own.reclaim(self.cache.evict(missing))

    def take_chunk(self, request: Request, start: int, end: int, seq: int) -> np.ndarray:
        """int32: slots for tokens [start, end) of the context, which round `seq` computes; they enter the cache. They have
        been made free."""
        slots = self.own.take(np.array([request.row]), np.array([end - start]), end - start)
        if self.would_share(request, start):
            assert request.node is not None
            tokens = request.context[start:end].copy()
            request.node = self.cache.append(request.node, tokens, slots, seq)
            request.shared = end
            self.own.donate(request.row, end - start)
        return slots

    def would_share(self, request: Request, start: int) -> bool:
        """Whether a chunk from `start` on enters the cache."""
        return (
            self._enabled
            and request.shared == start
            and request.node is not None
            and int(request.context[start]) not in request.node.children
        )

    def close(self, request: Request, keep: bool = True) -> None:
        """The request leaves its row: what is confirmed of its tokens stays in the cache, the rest is free. Without `keep`
        nothing does of what it computed, or read before anybody has vouched for it."""
        assert request.node is not None
        first = last = request.shared
        if keep and self._enabled and (known_tokens := request.known_tokens) > len(request.context):
            last = known_tokens - 1  # the token sampled last has no KV
        if last > first:
            own = self.own.slots(request.row, last - first)
            _, known = self.cache.insert(request.ids(first, last), own, request.node)
            self.own.release(request.row, known, last - first)
        else:
            self.own.release(request.row)
        self.cache.unlock(request.node)
        if not keep:
            self.own.reclaim(self.cache.drop(request.node))
        request.node, request.shared = None, 0

    def vouch(self, request: Request) -> None:
        """A token was sampled behind the request's prefix, from logits that are numbers: so is all that they were computed
        from."""
        assert request.node is not None
        self.cache.vouch(request.node)

    def shared_by_several(self, requests: Collection[Request]) -> list[int]:
        """For each of these, which have rows: tokens of its prefix that other running requests read too."""
        return [
            request.shared - self.cache.unshared(request.node) if request.shared and request.node else 0
            for request in requests
        ]

    # -- rounds that fail, and flushing

    def take_back(self, seq: int, requests: Collection[Request]) -> list[Request]:
        """Rounds from `seq` on were never computed. Those of `requests` whose prefix shrinks, now without own slots: all
        that they had behind it was to be computed in these rounds too."""
        shrunk = []
        for request in requests:
            assert request.node is not None
            node, lost = self.cache.survivor(request.node, seq)
            if lost:
                self.cache.lock(node)
                self.cache.unlock(request.node)
                request.node = node
                request.shared -= lost
                self.own.give_back(request.row, self.own.held(request.row))
                shrunk.append(request)
        self.own.reclaim(self.cache.take_back(seq))
        return shrunk

    def keep(self, request: Request, kv_len: int) -> None:
        """Frees the request's own slots behind the first `kv_len` tokens."""
        self.own.give_back(request.row, self.own.held(request.row) + request.shared - kv_len)

    def flush(self) -> int:
        """Empties the cache of what is not read; how many tokens that were."""
        slots = self.cache.evict(self.cache.evictable)
        self.own.reclaim(slots)
        return len(slots)

    # -- for people

    def draw(self, now: float) -> KvMap:
        """Who has which part of the memory. Costs milliseconds for a million slots."""
        slots, cached = self.own.capacity, self.own.cached
        cells = min(MAP_CELLS, slots)
        edges = -(-np.arange(cells + 1, dtype=np.int64) * slots // cells)
        size = np.diff(edges)
        own, free = self.own.per_cell(cells)
        return KvMap(
            drawn=now, slots=slots, own=self.own.used, cached=cached, read=cached - self.cache.evictable, free=self.own.free,
            nodes=self.cache.size, cells=Cells(size.tolist(), own.tolist(), (size - own - free).tolist()),
        )  # fmt: skip

    # -- waiting for a prefix that another request computes

    def overlap(self, request: Request, known: int, other: Request, end: int) -> bool:
        """Whether it is worth while for `request`, of whose context `known` tokens are there, to wait until `other`, which
        prefills, has computed its context up to `end`."""
        limit = min(self._match_limit(request, request.known_tokens), end)
        least = 1 if request.group == other.group else self._worth_waiting
        if limit - known < least:
            return False
        mine = request.context if request.node is not None else request.all_ids()
        if mine[known] != other.context[known]:
            return False  # as most do
        return common_length(mine[:limit], other.context) - known >= least

    def may_wait(self, request: Request, known: int, prefilling: list[Request]) -> bool:
        """Whether the request, of whose context `known` tokens are cached, may ever wait for one that prefills."""
        if not prefilling or known >= request.known_tokens:
            return False
        token = request.all_ids()[known]
        return any(
            known < len(other.context)
            and other.context[known] == token  # as for few
            and self.overlap(request, known, other, len(other.context))
            for other in prefilling
        )

    def siblings_wait(self, request: Request, known: int) -> bool:
        """Whether the siblings of a request wait for its prompt if they enter with it."""
        return self._match_limit(request, request.known_tokens) > known

    def _match_limit(self, request: Request, length: int) -> int:
        """The last token of a context is always computed; log-probabilities of a prompt need all of it."""
        unreported = request.params.prompt_logprobs >= 0 and request.prompt_logprobs_sent < request.prompt_len
        return 0 if unreported or not self._enabled else length - 1

    def check(self, requests: Collection[Request]) -> list[str]:
        """What is wrong with the books; empty if nothing is."""
        found = self.cache.check(request.node for request in requests if request.node is not None)
        found += self.own.check(self.cache.all_slots())
        for request in requests:
            assert request.node is not None
            path = self.cache.path_slots(request.node)
            if len(path) != request.shared:
                found.append(
                    f"request {request.id} shares {request.shared} slots, its prefix has {len(path)}"
                )
        return found

"""A server that passes over the rounds in which nothing changes: the scheduler's rules without its rounds.

Between an arrival, the end of a prompt and the end of an output all rounds are alike, but that contexts grow: their times have a
formula (`flight.py`), and what each request has generated follows from the number of the round. What decides the figures is real:
the prefix cache with its eviction, the forecast of memory with what it has learned of outputs, and two rounds in flight.

Simpler than the scheduler, each of which the fine simulation (`simulator.py`) shows: requests that do not fit are never passed by
others; a request that pauses does so at once; rows are never more than a round takes; only `mixed` rounds of split prompts, no
limits on what waits. docs/dispatch.md says how far both are apart.
"""

from __future__ import annotations

import heapq
from collections import deque

import numpy as np

from lightllm.errors import InvalidOption
from lightllm.router.admission.controller import SKIPPED
from lightllm.router.admission.demand import Demand
from lightllm.router.admission.forecast import Forecast
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import make_policy
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.memory.kv_cache_manager import EVICT_LEAST, EVICT_MOST
from lightllm.router.memory.radix_cache import CONFIRMED, CachedPrefix, RadixCache, common_length
from lightllm.router.memory.radix_node import Node
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.simulate.flight import Flight
from lightllm.simulate.latency import LatencyModel
from lightllm.simulate.simulator import Watch
from lightllm.simulate.trace import TraceRequest, words

_SLOTS = np.zeros(1 << 20, dtype=np.int32)
"""Which slots a context has matters to nobody here."""
_WORDS = words(1 << 16)


class _Job:
    """A request. Rounds are numbered from 1."""

    __slots__ = ("cached", "context", "end_round", "first_round", "limit", "made", "node", "output", "place", "prompt", "shared")  # fmt: skip

    def __init__(self, place: int, request: TraceRequest, limit: int) -> None:
        self.place = place
        self.prompt = self.context = request.prompt_ids
        """`context`: what is prefilled: the prompt, and what had been generated before a pause."""
        self.limit = limit
        self.output = min(request.output_len, limit)
        """Tokens that it will have generated in the end."""
        self.made = 0
        """Of these, those in `context`."""
        self.node: Node | None = None
        """While it runs: the end of its context in the prefix cache, as far as that is computed: `shared` tokens."""
        self.shared = 0
        self.cached = 0
        """Tokens of the prompt that it found in the cache."""
        self.first_round = 0
        """With which it decodes: its first token came with the one before."""
        self.end_round = 0

    @property
    def work(self) -> int:
        return len(self.context) - self.shared

    def generated(self, round_: int) -> int:
        """After this round."""
        return self.made + max(0, round_ - self.first_round + 2)


class CoarseServer:
    """As `Simulation`, as far as a fleet knows it."""

    def __init__(
        self, config: SchedulerConfig, latency: LatencyModel, max_new_tokens: int, watch: Watch
    ) -> None:
        """Raises `InvalidOption` for rounds of another kind."""
        if not config.mixes or config.whole_prompts or config.decode_tokens > 1 or not config.prompt_cache:
            raise InvalidOption("A coarse simulation has mixed rounds, split prompts and a prefix cache.")
        self.config = config
        self.now = 0.0
        self._max_new_tokens = max_new_tokens
        self._watch = watch
        self._flight: Flight[_Job] = Flight(latency)
        self._cache = RadixCache()
        slots = config.max_total_token_num
        self._evict_at_once = min(slots // 64, min(max(EVICT_LEAST, slots // 128), EVICT_MOST))
        self._policy = make_policy(config)
        self._lengths = OutputLengths()
        self._arrived = 0
        self._waiting: deque[_Job] = deque()
        self._prefilling: list[_Job] = []
        self._decoding: dict[int, _Job] = {}
        self._ends: list[tuple[int, int]] = []
        """Heap of (last round, place) of those that decode; and of some that have paused."""
        self._planned = 0
        """Number of the last round that is planned."""
        self._confirmed = 0
        self._retry_round = 0
        """The first waiting request did not fit: it is tried again when one has left, or from this round on."""
        # Sums over those that decode, of what does not change while they do
        self._contexts = self._firsts = self._limits = 0

    # -- what a fleet does

    @property
    def next_done(self) -> float:
        return self._flight.next_done

    def arrive(self, request: TraceRequest) -> int | None:
        """Its place; None: it could never fit, and is refused."""
        self.now = max(self.now, request.arrival)
        longest = min(self.config.max_req_total_len, self.config.max_total_token_num)
        if len(request.prompt_ids) + self._max_new_tokens > longest:
            return None
        self._cut()
        job = _Job(self._arrived, request, self._max_new_tokens)
        self._arrived += 1
        self._waiting.append(job)
        self._plan()
        return job.place

    def advance(self) -> None:
        """To the end of the oldest stretch of rounds, of which there must be one."""
        stretch = self._flight.take()
        self.now = stretch.end
        self._confirmed += stretch.count
        new = [job.place for job in stretch.begins if not job.made]
        if new:
            self._watch.first(new, self.now)
        while self._ends and self._ends[0][0] <= self._confirmed:
            job = self._decoding.get(heapq.heappop(self._ends)[1])
            if job is not None and job.end_round <= self._confirmed:
                self._finish(job)
        self._plan()

    def outputs(self, place: int) -> int:
        """Tokens that this request, which has not ended, has generated by `now`."""
        job = self._decoding.get(place)
        if job is not None:
            return job.generated(self._confirmed + self._flight.over(self.now))
        return next((job.made for job in (*self._prefilling, *self._waiting) if job.place == place), 0)

    def use_latency(self, latency: LatencyModel, now: float) -> None:
        """The device is another one from the next round on."""
        self.now = max(self.now, now)
        self._cut()
        self._flight.latency = latency

    def watch_cache(self, ledger: BlockLedger) -> None:
        self._cache.ledger = ledger

    # -- memory, in slots

    @property
    def _own(self) -> int:
        """That hold outputs: one for each round since the first one of each."""
        return len(self._decoding) * self._planned - self._firsts

    @property
    def _free(self) -> int:
        return self.config.max_total_token_num - self._cache.tokens - self._own

    @property
    def _available(self) -> int:
        return self._free + self._cache.evictable

    def _make_free(self, count: int) -> None:
        missing = count - self._free
        if missing > 0:
            self._cache.evict(max(missing, self._evict_at_once))

    # -- rounds

    def _cut(self) -> None:
        """Two rounds are in flight when something comes, or none."""
        self._planned -= self._flight.cut(self.now)
        if len(self._flight) == 1:
            self._plan_rounds(1)

    def _plan(self) -> None:
        while self._flight.takes_more and self._plan_rounds():
            pass

    def _plan_rounds(self, most: int = 1 << 30) -> bool:
        """One more stretch; whether there is anything to compute."""
        while len(self._decoding) > self._available:
            if not self._pause_newest():
                return False
        rows = len(self._decoding)
        idle = not rows and not self._prefilling
        if self._waiting and (idle or self._planned >= self._retry_round):
            self._admit(rows)
        chunks = self._chunks(rows) if self._prefilling else []
        if not rows and not chunks:
            # prompts that hold all slots, each too few to be complete: but for one of them
            stuck = not len(self._flight) and len(self._prefilling) > 1
            return stuck and self._pause_newest() and self._plan_rounds(most)
        count = 1 if chunks or self._prefilling else min(most, self._alike(rows))
        tokens = sum(end - start for _, start, end in chunks)
        self._make_free(rows * count + tokens)
        held = self._contexts + self._own + rows + sum(end for _, _, end in chunks)
        self._planned += count
        begins = [job for job, start, end in chunks if self._compute(job, start, end)]
        self._flight.add(self.now, count, rows, held, tokens, begins)
        return True

    def _alike(self, rows: int) -> int:
        """Rounds from the next one on that are surely alike. The last round of a request and the one behind it, which is planned
        before it is known that it was the last, stand alone."""
        while self._ends[0][1] not in self._decoding:
            heapq.heappop(self._ends)
        count = self._ends[0][0] - self._planned - 1
        if self._waiting:
            count = min(count, self._retry_round - self._planned)
        return max(1, min(count, self._available // rows))

    def _chunks(self, rows: int) -> list[tuple[_Job, int, int]]:
        """(request, start, end): what the next round prefills beside `rows` that decode."""
        for job in self._prefilling:
            self._extend(job)
        room, free = self.config.batch_max_tokens - rows, self._available - rows
        chunks: list[tuple[_Job, int, int]] = []
        for job in self._prefilling:
            count = min(job.work, self.config.chunked_prefill_size, room, free)
            if count <= 0:
                break
            if any(self._worth_waiting(job, *chunk) for chunk in chunks):
                continue
            chunks.append((job, job.shared, job.shared + count))
            room -= count
            free -= count
        return chunks

    def _worth_waiting(self, job: _Job, other: _Job, _: int, end: int) -> bool:
        """Whether the other one computes in this round what this one needs, too."""
        known, limit = job.shared, min(len(job.context) - 1, end)
        if limit - known < self.config.worth_waiting or job.context[known] != other.context[known]:
            return False
        return common_length(job.context[:limit], other.context) - known >= self.config.worth_waiting

    def _compute(self, job: _Job, start: int, end: int) -> bool:
        """The chunk is planned, and enters the prefix cache; whether it is the last one."""
        assert job.node is not None
        tokens, cache = job.context[start:end].copy(), self._cache
        if int(tokens[0]) in job.node.children:  # of two in one round that have little in common
            node, _ = cache.insert(tokens, _SLOTS[: len(tokens)], job.node)
            cache.lock(node)
            cache.unlock(job.node)
        else:
            node = cache.append(job.node, tokens, _SLOTS[: len(tokens)], CONFIRMED)
        job.node, job.shared = node, end
        if job.work:
            return False
        self._prefilling.remove(job)
        job.first_round = self._planned + 1
        job.end_round = self._planned + job.output - job.made - 1
        self._decoding[job.place] = job
        heapq.heappush(self._ends, (job.end_round, job.place))
        self._contexts += len(job.context)
        self._firsts += self._planned
        self._limits += job.limit - job.made - 1
        return True

    # -- requests

    def _admit(self, rows: int) -> None:
        """Those that fit, in their order, as long as their prefill can begin in the next round."""
        config = self.config
        room = config.batch_max_tokens - rows
        queued = sum(min(job.work, config.chunked_prefill_size) for job in self._prefilling)
        while self._waiting and queued < room and rows + len(self._prefilling) < config.max_rows:
            job = self._waiting[0]
            prefix = self._cache.peek(job.context[:-1])
            if self._available - (prefix.length - prefix.read) < rows or not self._fits(job, prefix):
                self._retry_round = self._planned + 1 + SKIPPED
                return
            self._waiting.popleft()
            job.node, job.shared = self._cache.match(job.context[:-1])
            self._cache.lock(job.node)
            job.cached += 0 if job.made else job.shared
            self._prefilling.append(job)
            queued += min(job.work, config.chunked_prefill_size)

    def _fits(self, job: _Job, prefix: CachedPrefix) -> bool:
        """Whether memory would last, as the scheduler's own forecast sees it; where it would for the longest outputs, that need not
        be asked."""
        in_use = self.config.max_total_token_num - self._available
        to_come = self._limits - self._own
        to_come += sum(other.work + other.limit - other.made for other in self._prefilling)
        more = len(job.context) - (prefix.read if self._policy.may_err else prefix.shared)
        if in_use + to_come + more + job.limit - job.made <= self.config.max_total_token_num:
            return True
        rows = [*self._decoding.values()]
        facts = [(each.limit, each.made, each.first_round, self._unshared(each)) for each in rows]
        limits, made, first_rounds, unshared = np.array(facts, dtype=np.int64).reshape(-1, 4).T
        own = self._planned - first_rounds + 1
        generated = np.minimum(made + 1 + own, limits)
        held = unshared + own
        self._lengths.update(generated, self._planned)
        prompts = [(each, each.work + self._unshared(each)) for each in self._prefilling]
        # what several read counts once, and for none of them
        common = in_use - int(held.sum()) - sum(held - each.work for each, held in prompts)
        forecast = Forecast(
            self._policy, self._lengths, self.config, self.config.max_total_token_num, common,
            in_use / self.config.max_total_token_num,
        )  # fmt: skip
        forecast.add_decoding(Demand.decoding(held, generated, limits, np.zeros(len(held), dtype=bool)))
        forecast.add_prefilling(Demand.of([_demand(each, held, each.work) for each, held in prompts]))
        return forecast.admit(Demand.of([_demand(job, more, len(job.context) - prefix.length)]))

    def _unshared(self, job: _Job) -> int:
        assert job.node is not None
        return self._cache.unshared(job.node)

    def _extend(self, job: _Job) -> None:
        """It skips what others have computed in the meantime."""
        assert job.node is not None
        if job.node.children:
            node, more = self._cache.match(job.context[job.shared : -1], job.node)
            if more:
                self._cache.lock(node)
                self._cache.unlock(job.node)
                job.node = node
                job.shared += more
                job.cached += 0 if job.made else more

    def _finish(self, job: _Job) -> None:
        self._leave(job, job.end_round - job.first_round + 1)
        self._lengths.add(job.output, job.output < job.limit, self._confirmed)
        self._watch.ended(job.place, job.cached, self.now)

    def _leave(self, job: _Job, decoded: int) -> None:
        """It has computed `decoded` outputs, which stay in the prefix cache."""
        assert job.node is not None
        if decoded:
            tokens = _WORDS[:decoded] if decoded <= len(_WORDS) else words(decoded)
            self._cache.insert(tokens, _SLOTS[:decoded], job.node)
        self._cache.unlock(job.node)
        job.node, job.shared = None, 0
        del self._decoding[job.place]
        self._contexts -= len(job.context)
        self._firsts -= job.first_round - 1
        self._limits -= job.limit - job.made - 1
        self._retry_round = 0

    def _pause_newest(self) -> bool:
        """Memory is short: the request that came last waits again. False: none can."""
        if self._prefilling:
            job = max(self._prefilling, key=lambda each: each.place)
            self._prefilling.remove(job)
            assert job.node is not None
            self._cache.unlock(job.node)
            job.node, job.shared = None, 0
        else:
            going_on = [job for job in self._decoding.values() if job.end_round > self._planned]
            if not going_on:
                return False
            job = max(going_on, key=lambda each: each.place)
            made = job.generated(self._planned)
            self._leave(job, self._planned - job.first_round + 1)
            job.made = made
            job.context = np.concatenate([job.prompt, words(made)]) if made else job.prompt
        self._waiting.appendleft(job)
        self._retry_round = self._planned + 1 + SKIPPED
        return True


def _demand(job: _Job, held: int, work: int) -> tuple[int, int, int, bool, int, bool]:
    """A row of `Demand.of`."""
    return held, job.made, job.limit, False, work, False

"""Chooses what runs next: which rows decode, how far each prompt is prefilled, and which requests pause."""

from __future__ import annotations

import dataclasses
import logging

from lightllm.router.admission.controller import AdmissionController
from lightllm.router.admission.slo import SloController
from lightllm.router.admission.waiting import WaitingList
from lightllm.router.planning.planned_round import Chunk, DecodeBatch, PlannedRound
from lightllm.router.planning.running import Running
from lightllm.router.request import Request, State
from lightllm.router.scheduler_config import SchedulerConfig

RECOVERY_ROUNDS = 64
"""Successful rounds after which a token budget that was halved for want of memory doubles again."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Planner:
    """Works on the books of its `Scheduler`; `_in_flight` is that object's own list."""

    _config: SchedulerConfig
    _running: Running
    _waiting: WaitingList
    _admission: AdmissionController
    _slo: SloController
    _in_flight: list[PlannedRound]
    _successes: int = 0
    _rounds_without_prefill: int = 0
    pauses: int = 0
    """How often a request had to pause."""

    def __post_init__(self) -> None:
        self._token_budget = self._config.batch_max_tokens

    def choose(self, now: float) -> tuple[DecodeBatch, list[Chunk]] | None:
        """Decode rows and prefill chunks of the next round, with slots for all; None if nothing can run now."""
        while True:
            batch = self._make_room()
            if batch is None:
                return None
            chunks: list[Chunk] = []
            config = self._config
            if config.mixes or not len(batch) or self._rounds_without_prefill >= config.decode_rounds:
                batch, chunks = self._fill(batch, now)
            if len(batch) or chunks:
                self._rounds_without_prefill = 0 if chunks else self._rounds_without_prefill + 1
                if self._config.decode_tokens > 1:
                    taken = len(batch) + sum(chunk.end - chunk.start for chunk in chunks)
                    batch = self._running.widened(
                        batch, min(self._token_budget, self._running.kv.available) - taken
                    )
                return batch, chunks
            if self._in_flight or len(self._running.prefilling) < 2:
                return None
            self._pause_newest()  # prompts that hold all slots, each too few to be complete

    def choose_of(self, requests: list[Request]) -> tuple[DecodeBatch, list[Chunk]] | None:
        """A round of these alone, which prefill. Others pause if there is no slot for them; None if they had to themselves."""
        running = self._running
        while any(request.state is State.PREFILLING for request in requests):
            turn = [request for request in running.prefilling if request in requests]
            chunks = self._chunks(turn, self._token_budget, running.kv.available, 0)
            if chunks:
                return running.decode_batch(0), chunks
            self._pause_newest()
        return None

    def _make_room(self) -> DecodeBatch | None:
        """The decode rows of this round, each of which can get a slot. The newest requests pause until that is so;
        None while they wait for their rounds in flight. With conservative admission none has to."""
        kv = self._running.kv
        while True:
            batch = self._running.decode_batch(self._token_budget)
            missing = len(batch) - kv.available
            if missing <= 0:
                return batch
            if missing <= self._running.ending_tokens():
                return None
            self._pause_newest()

    def _fill(self, batch: DecodeBatch, now: float) -> tuple[DecodeBatch, list[Chunk]]:
        """The round with prefill chunks for what the decode rows leave of the token budget, admitting what fits. Where
        prompts have rounds of their own, the decode rows sit this one out; their slots stay available."""
        running, mixes = self._running, self._config.mixes
        whole = self._whole
        rows, room = len(batch), self._token_budget
        if not whole:
            room = self._slo.round_tokens(rows, room, running.kv.in_use)
        beside = rows if mixes else 0
        room -= beside
        running.extend_prefixes(rows)
        if not self._waiting:
            self._admission.nobody_waits()
        elif not running.pausing:
            self._admission.admit(room, whole, rows, now)
        if not running.prefilling:
            return batch, []
        if whole and mixes and running.work(running.prefilling[0]) > room:
            # a prompt that needs a round of its own
            batch, room, beside = running.decode_batch(0), self._token_budget, 0
        chunks = self._chunks(running.prefilling, room, running.kv.available - len(batch), beside)
        return (running.decode_batch(0) if chunks and not mixes else batch), chunks

    @property
    def _whole(self) -> bool:
        """Whether prompts are not to be split."""
        return self._config.whole_prompts and self._token_budget == self._config.batch_max_tokens

    def _chunks(self, requests: list[Request], room: int, free: int, decoding: int) -> list[Chunk]:
        """Prefill chunks of these, in this order, of `room` tokens in all at most, in `free` slots, beside `decoding` rows. What
        must not be cut may take more than `room` and than `chunked_prefill_size`: all that the round's budget leaves, and more
        than a budget that was halved for want of memory where nothing else is computed."""
        running = self._running
        chunks: list[Chunk] = []
        left = self._token_budget - decoding
        for request in requests:
            work = running.work(request)
            count = min(work, self._config.chunked_prefill_size, room, free)
            if count <= 0 or (self._whole and count < work):
                break
            start = int(running.kv_len[request.row])
            if request.may_wait and self._waits(request, start, chunks):
                continue
            if len(request.uncut):
                alone = not chunks and not decoding
                count = request.chunk_end(start, start + count) - start
                if count > min(free, self._config.batch_max_tokens if alone else left):
                    break
            chunks.append(Chunk(request, start, start + count))
            room -= count
            left -= count
            free -= count
        return chunks

    def _waits(self, request: Request, known: int, chunks: list[Chunk]) -> bool:
        """Whether the request sits out this round, in which one of `chunks` computes what it needs too. It waits only for
        requests ahead of it that get on meanwhile, so it does not wait for ever."""
        kv = self._running.kv
        return known == request.shared and any(
            kv.would_share(other, start) and kv.overlap(request, known, other, end)
            for other, start, end in chunks
        )

    def _pause_newest(self) -> None:
        request = self._running.newest()
        if request is None:
            raise RuntimeError("no request is left to pause")
        logger.debug("request %d pauses: memory is short", request.id)
        self.pauses += 1
        self._running.start_pausing(request)
        self.settle_pausing()

    def settle_pausing(self) -> None:
        """A pausing request gives its row and slots back when none of its rounds is in flight any more."""
        for request in list(self._running.pausing):
            if not any(self._running.computes_for(planned, request) for planned in self._in_flight):
                self._running.leave(request)
                request.transition(State.PAUSED)
                self._waiting.put_back(request)

    def round_too_large(self, tokens: int) -> None:
        """A round of `tokens` ran out of device memory: the next ones have at most half of that."""
        self._token_budget = max(1, tokens // 2)
        self._successes = 0

    def round_succeeded(self) -> None:
        """A smaller budget recovers step by step."""
        self._successes += 1
        if self._successes >= RECOVERY_ROUNDS:
            self._token_budget = min(self._token_budget * 2, self._config.batch_max_tokens)
            self._successes = 0

"""The requests that hold rows: what is planned for them, and how a round is made of it, undone, or left.

Planned state runs ahead of the results by up to two rounds. It is kept by row in arrays, so that a round of pure decode
costs no Python work per request.
"""

from __future__ import annotations

from bisect import insort

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.protocol.rounds import Round
from lightllm.router.kv_books import KvBooks
from lightllm.router.limits import SchedulerLimits
from lightllm.router.planned_round import Chunk, DecodeBatch, PlannedRound
from lightllm.router.request import NO_ROW, Request, State
from lightllm.router.token_memory import RowMemory


class Running:
    """Owns rows and slots. A running request is in exactly one of `prefilling`, the decoding ones, those whose outputs
    are all planned, or `pausing`."""

    def __init__(self, limits: SchedulerLimits) -> None:
        max_rows = limits.max_rows
        self.kv = KvBooks(limits)
        self.rows = RowMemory(max_rows)
        self.requests: dict[int, Request] = {}
        self.prefilling: list[Request] = []
        """In the order in which they are served."""
        self.pausing: list[Request] = []
        self.kv_len = np.zeros(max_rows, dtype=np.int32)
        """Planned context length, by row."""
        self.remaining = np.zeros(max_rows, dtype=np.int32)
        """Outputs not yet planned, by row."""
        self._decoding: dict[int, Request] = {}
        self._batch: DecodeBatch | None = None
        self._leaves: list[int] = []

    def enter(self, request: Request, may_wait: bool) -> None:
        """Gives the request a row and a place in memory; its prefill is planned from now on."""
        request.to(State.PREFILLING)
        row = request.row = self.rows.take()
        request.begin_stay()
        request.may_wait = may_wait
        self.kv_len[row] = self.kv.open(request)
        request.came_in(0, request.shared, cached=True)
        self.remaining[row] = request.max_new_tokens - len(request.output_ids)
        self.requests[request.id] = request
        self.prefilling.append(request)

    def leave(self, request: Request) -> None:
        """Frees row and slots at once: rounds in flight run before any that reuses them."""
        self._out_of_plan(request)
        if request in self.pausing:
            self.pausing.remove(request)
        del self.requests[request.id]
        self.kv.close(request)
        self.rows.release(request.row)
        self._leaves.append(request.row)
        request.row = NO_ROW
        request.epoch += 1

    def start_pausing(self, request: Request) -> None:
        self._out_of_plan(request)
        request.to(State.PAUSING)
        self.pausing.append(request)

    def newest(self) -> Request | None:
        """Who pauses first: the latest arrival of those that still want memory."""
        wanting = [*self.prefilling, *self._decoding.values()]
        return max(wanting, key=lambda r: r.serial) if wanting else None

    def decode_batch(self, limit: int) -> DecodeBatch:
        """At most `limit` of the decoding requests; more than that take turns."""
        if len(self._decoding) > limit:
            return DecodeBatch.of(list(self._decoding.values())[:limit], self.remaining, partial=True)
        if self._batch is None:
            self._batch = DecodeBatch.of(list(self._decoding.values()), self.remaining)
        return self._batch

    def work(self, request: Request) -> int:
        """Tokens that a prefilling request has still to compute."""
        return len(request.context) - int(self.kv_len[request.row])

    def extend_prefixes(self, reserve: int) -> None:
        """Prompts that prefill skip what others have computed in the meantime; `reserve` slots stay available."""
        for request in self.prefilling:
            before = int(self.kv_len[request.row])
            known = self.kv.extend(request, before, reserve)
            if known > before:
                self.kv_len[request.row] = known
                request.needs_join = True
                request.came_in(before, known, cached=True)

    def plan(self, seq: int, batch: DecodeBatch, chunks: list[Chunk]) -> tuple[Round, PlannedRound]:
        """Takes the slots, advances the planned state, and makes the round. Memory has been checked."""
        rows = batch.rows
        slots = self.kv.take_one_each(rows) if len(rows) else EMPTY_INT32
        kv_len = self.kv_len[rows] + 1
        self.kv_len[rows] = kv_len
        self.remaining[rows] -= 1
        leaves, self._leaves = self._leaves, []
        if chunks:
            round_, planned = self._with_chunks(seq, batch, slots, kv_len, chunks, leaves)
        else:
            round_ = Round(
                seq, len(rows), rows, batch.ones, kv_len, batch.samples, EMPTY_INT32, slots, leaves=leaves
            )
            planned = PlannedRound(
                seq, batch.requests, batch.epochs, batch.ones, batch.samples, batch.requests, batch.epochs, leaves,
                num_decode=len(rows), prefill_tokens=0, tokens=len(rows),
            )  # fmt: skip
        self._after_decode(batch)
        return round_, planned

    def undo(self, rounds: list[PlannedRound]) -> None:
        """Takes back rounds (oldest first) that were never executed: their requests prefill again what has no KV,
        beginning with a join, for their rows may be void. So do those who share what these rounds were to compute."""
        undone: dict[int, Request] = {}
        for planned in reversed(rounds):
            self._leaves = planned.leaves + self._leaves
            for request, i in planned.alive():
                self.kv_len[request.row] -= planned.q_len[i]
                self.remaining[request.row] += planned.samples[i]
                undone[request.id] = request
        shrunk = self.kv.take_back(rounds[0].seq, self.requests.values())
        for request in shrunk:
            self.kv_len[request.row] = request.shared
            request.may_wait = True  # for who computes it again
            undone[request.id] = request
        for request in undone.values():
            kv_len = int(self.kv_len[request.row])
            self.kv.keep(request, kv_len)
            request.went_out(kv_len)
            request.begin_stay()
            if request.state is State.DECODING:
                self._out_of_plan(request)
                request.to(State.PREFILLING)
                insort(self.prefilling, request, key=lambda r: r.serial)

    def _with_chunks(
        self, seq: int, batch: DecodeBatch, slots: np.ndarray, kv_len: np.ndarray, chunks: list[Chunk], leaves: list[int]
    ) -> tuple[Round, PlannedRound]:  # fmt: skip
        joins, sampled, slot_parts, samples = [], [], [slots], []
        for chunk in chunks:
            request = chunk.request
            if request.needs_join:
                joins.append(request.join_row(self.kv.slots(request)))
                request.needs_join = False
            slot_parts.append(self.kv.take_chunk(request, chunk.start, chunk.end, seq))
            request.came_in(chunk.start, chunk.end, cached=False)
            self.kv_len[request.row] = chunk.end
            last = chunk.end == len(request.context)
            samples.append(last)
            if last:
                sampled.append(request)
                self._start_decoding(request)
        requests = batch.requests + [chunk.request for chunk in chunks]
        q_len = np.concatenate([batch.ones, np.array([c.end - c.start for c in chunks], dtype=np.int32)])
        token_ids = np.concatenate([c.request.context[c.start : c.end] for c in chunks])
        round_ = Round(
            seq=seq,
            num_decode=len(batch.requests),
            rows=np.concatenate([batch.rows, np.array([c.request.row for c in chunks], dtype=np.int32)]),
            q_len=q_len,
            kv_len=np.concatenate([kv_len, np.array([c.end for c in chunks], dtype=np.int32)]),
            samples=np.concatenate([batch.samples, np.array(samples, dtype=np.uint8)]),
            token_ids=token_ids.astype(np.int32, copy=False),
            slots=np.concatenate(slot_parts),
            joins=joins,
            leaves=leaves,
        )
        planned = PlannedRound(
            seq=seq,
            requests=requests,
            epochs=[r.epoch for r in requests],
            q_len=q_len,
            samples=round_.samples,
            sampled=batch.requests + sampled,
            sampled_epochs=batch.epochs + [r.epoch for r in sampled],
            leaves=leaves,
            prefill_tokens=len(token_ids),
            num_decode=len(batch.requests),
            tokens=len(round_.slots),
        )
        return round_, planned

    def _start_decoding(self, request: Request) -> None:
        """Its last chunk is planned, and with it one output."""
        request.to(State.DECODING)
        self.prefilling.remove(request)
        self.remaining[request.row] -= 1
        if self.remaining[request.row]:
            self._decoding[request.id] = request
            self._batch = None

    def _after_decode(self, batch: DecodeBatch) -> None:
        """A length end is known when planning: who has all outputs planned decodes no more. Who had a turn goes last."""
        batch.rounds_left -= 1
        if batch.requests and not batch.rounds_left:
            self._batch = None
            for request in batch.requests:
                if not self.remaining[request.row]:
                    del self._decoding[request.id]
        if batch.partial:
            for request in batch.requests:
                if self._decoding.pop(request.id, None):
                    self._decoding[request.id] = request
            self._batch = None

    def _out_of_plan(self, request: Request) -> None:
        if self._decoding.pop(request.id, None):
            self._batch = None
        elif request in self.prefilling:
            self.prefilling.remove(request)

    def problems(self) -> list[str]:
        """What is wrong with the books of rows and slots; empty if nothing is."""
        found = self.kv.problems(self.requests.values())
        taken = sorted([r.row for r in self.requests.values()] + self.rows.free_rows())
        if taken != list(range(self.rows.max_rows)):
            found.append(f"rows are lost or owned twice: {taken}")
        own = 0
        for request in self.requests.values():
            held, kv_len = self.kv.own.held(request.row), int(self.kv_len[request.row])
            own += held
            if held + request.shared != kv_len:
                found.append(f"request {request.id} has {kv_len} tokens in memory, but {held} slots of its own and "
                             f"{request.shared} shared ones")  # fmt: skip
        if own != self.kv.own.used:
            found.append(f"{self.kv.own.used} slots are used, but not by the running requests")
        return found

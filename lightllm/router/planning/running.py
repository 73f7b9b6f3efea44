"""The requests that hold rows: what is planned for them, and how a round is made of it, undone, or left.

Planned state runs ahead of the results by up to two rounds. It is kept by row in arrays, so that a round of pure decode
costs no Python work per request.
"""

from __future__ import annotations

from bisect import insort
from itertools import islice

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.protocol.rounds import Round
from lightllm.router.memory.kv_books import KvBooks
from lightllm.router.memory.token_memory import RowMemory
from lightllm.router.planning.planned_round import Chunk, DecodeBatch, PlannedRound
from lightllm.router.recent_outputs import RecentOutputs
from lightllm.router.request import Request, State
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.router.stop_ids import StopIds


class Running:
    """Owns rows and slots. A running request is in exactly one of `prefilling`, the decoding ones, those whose outputs
    are all planned, or `pausing`."""

    def __init__(self, limits: SchedulerConfig) -> None:
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
        self.max_new_tokens = np.zeros(max_rows, dtype=np.int64)
        """By row."""
        self.recent_outputs = RecentOutputs(max_rows)
        self.by_row: list[Request | None] = [None] * max_rows
        self.ids = np.zeros(max_rows, dtype=np.int64)
        """Request ids, by row."""
        self.stop_ids = StopIds()
        """Tokens that end a running request."""
        self._stays = np.zeros(max_rows, dtype=np.int64)
        """How many requests have left each row."""
        self._prefilled = np.zeros(max_rows, dtype=bool)
        """Rows whose prefill has been planned to its end, or will not be (`pausing`)."""
        self.exact = np.zeros(max_rows, dtype=bool)
        """Whether nothing but its limit ends the output, by row."""
        self._decoding: dict[int, None] = {}
        """Rows, in the order in which they take turns if there are too many for one round."""
        self._decodes = np.zeros(max_rows, dtype=bool)
        """The same rows."""
        self._batch: DecodeBatch | None = None
        self._nobody = DecodeBatch.of(self._decodes.nonzero()[0], self.remaining, self._stays)
        self._leaves: list[int] = []
        self.left = 0
        """How many requests have left their rows so far."""

    def enter(self, request: Request, may_wait: bool) -> None:
        """Gives the request a row and a place in memory; its prefill is planned from now on."""
        request.to(State.PREFILLING)
        row = self.rows.take()
        request.enter_row(row, self.recent_outputs)
        self.by_row[row], self.ids[row] = request, request.id
        request.begin_stay()
        request.may_wait = may_wait
        self.kv_len[row] = self.kv.open(request)
        request.came_in(0, request.shared, cached=True)
        self.remaining[row] = request.max_new_tokens - len(request.output_ids)
        self.max_new_tokens[row] = request.max_new_tokens
        self.stop_ids.add(request.stop_ids)
        self.exact[row] = request.runs_to_limit
        self.requests[request.id] = request
        self.prefilling.append(request)

    def leave(self, request: Request, keep: bool = True) -> None:
        """Frees row and slots at once: rounds in flight run before any that reuses them. keep: what it computed stays in the
        prefix cache; otherwise nobody reads it any more."""
        self._out_of_plan(request)
        if request in self.pausing:
            self.pausing.remove(request)
        del self.requests[request.id]
        self.kv.close(request, keep)
        self.stop_ids.remove(request.stop_ids)
        row = request.row
        self.left += 1
        self.rows.release(row)
        self._leaves.append(row)
        self._stays[row] += 1
        self._prefilled[row] = False
        self.by_row[row] = None
        request.leave_row()

    def start_pausing(self, request: Request) -> None:
        self._out_of_plan(request)
        self._prefilled[request.row] = True
        request.to(State.PAUSING)
        self.pausing.append(request)

    def newest(self) -> Request | None:
        """Who pauses first: of those that still want memory the worst priority, in it the latest arrival."""
        decoding = (request for row in self._decoding if (request := self.by_row[row]) is not None)
        wanting = [*self.prefilling, *decoding]
        return max(wanting, key=lambda r: (r.priority, r.serial)) if wanting else None

    def decode_batch(self, limit: int) -> DecodeBatch:
        """At most `limit` of the decoding requests; more than that take turns."""
        if not limit:
            return self._nobody
        if len(self._decoding) > limit:
            first = list(islice(self._decoding, limit))
            return DecodeBatch.of(np.array(first), self.remaining, self._stays, partial=True)
        if self._batch is None:
            self._batch = DecodeBatch.of(self._decodes.nonzero()[0], self.remaining, self._stays)
        return self._batch

    def prefilled_rows(self) -> np.ndarray:
        """int64 [n], ascending: rows that are past their prefill."""
        return self._prefilled.nonzero()[0]

    def ending_tokens(self) -> int:
        """Slots that are free as soon as what is in flight has returned: of those that have all outputs planned, or pause."""
        rows = self.prefilled_rows()
        ending = int(self.kv_len[rows[self.remaining[rows] == 0]].sum())
        return ending + sum(int(self.kv_len[request.row]) for request in self.pausing)

    def confirm(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """A token (int32 [n]) has come for each of `rows` (int64 [n])."""
        for row in self.recent_outputs.append(rows, tokens):
            request = self.by_row[row]
            assert request is not None
            request.collect()

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
        self.kv.make_free(len(rows) + sum(chunk.end - chunk.start for chunk in chunks))
        slots = self.kv.own.take_one_each(rows) if len(rows) else EMPTY_INT32
        kv_len = self.kv_len[rows] + 1
        self.kv_len[rows] = kv_len
        self.remaining[rows] -= 1
        leaves, self._leaves = self._leaves, []
        last = self._after_decode(batch)
        if chunks:
            round_, planned = self._with_chunks(seq, batch, slots, kv_len, chunks, last, leaves)
        else:
            round_ = Round(
                seq, len(rows), rows.astype(np.int32), batch.ones, kv_len, batch.samples, EMPTY_INT32, slots,
                leaves=leaves,
            )  # fmt: skip
            planned = PlannedRound(
                seq, rows, batch.stays, self._stays, self.by_row, batch.ones, batch.samples, rows, last, leaves,
                num_decode=len(rows), prefill_tokens=0, tokens=len(rows),
            )  # fmt: skip
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
                self._prefilled[request.row] = False
                request.to(State.PREFILLING)
                insort(self.prefilling, request, key=lambda r: r.serial)

    def _with_chunks(
        self, seq: int, batch: DecodeBatch, slots: np.ndarray, kv_len: np.ndarray, chunks: list[Chunk], last: list[int],
        leaves: list[int],
    ) -> tuple[Round, PlannedRound]:  # fmt: skip
        joins, slot_parts, samples = [], [slots], []
        for chunk in chunks:
            request = chunk.request
            if request.needs_join:
                joins.append(request.join_row(self.kv.slots(request)))
                request.needs_join = False
            slot_parts.append(self.kv.take_chunk(request, chunk.start, chunk.end, seq))
            request.came_in(chunk.start, chunk.end, cached=False)
            self.kv_len[request.row] = chunk.end
            complete = chunk.end == len(request.context)
            samples.append(complete)
            if complete and not self._start_decoding(request):
                last.append(len(batch) + sum(samples) - 1)
        rows = np.concatenate([batch.rows, np.array([c.request.row for c in chunks], dtype=np.int64)])
        q_len = np.concatenate([batch.ones, np.array([c.end - c.start for c in chunks], dtype=np.int32)])
        token_ids = np.concatenate([c.request.context[c.start : c.end] for c in chunks])
        round_ = Round(
            seq=seq,
            num_decode=len(batch),
            rows=rows.astype(np.int32),
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
            rows=rows,
            stays=self._stays[rows],
            stays_now=self._stays,
            by_row=self.by_row,
            q_len=q_len,
            samples=round_.samples,
            sampled=rows[round_.samples == 1],
            last=last,
            leaves=leaves,
            prefill_tokens=len(token_ids),
            num_decode=len(batch),
            tokens=len(round_.slots),
        )
        return round_, planned

    def _start_decoding(self, request: Request) -> bool:
        """Its last chunk is planned, and with it one output; whether there are more to come."""
        request.to(State.DECODING)
        row = request.row
        self.prefilling.remove(request)
        self._prefilled[row] = True
        self.remaining[row] -= 1
        if not self.remaining[row]:
            return False
        self._decoding[row] = None
        self._decodes[row] = True
        self._batch = None
        return True

    def _after_decode(self, batch: DecodeBatch) -> list[int]:
        """Positions in the batch of those whose last output this round plans: a length end is known when planning. They
        decode no more. Who had a turn goes last."""
        if not len(batch):
            return []
        last: list[int] = []
        batch.rounds_left -= 1
        if not batch.rounds_left:
            self._batch = None
            last = (self.remaining[batch.rows] == 0).nonzero()[0].tolist()
            for row in batch.rows[last].tolist():
                self._decode_no_more(row)
        if batch.partial:
            for row in batch.rows.tolist():
                if row in self._decoding:
                    del self._decoding[row]
                    self._decoding[row] = None
            self._batch = None
        return last

    def _out_of_plan(self, request: Request) -> None:
        if request.row in self._decoding:
            self._decode_no_more(request.row)
            self._batch = None
        elif request in self.prefilling:
            self.prefilling.remove(request)

    def _decode_no_more(self, row: int) -> None:
        del self._decoding[row]
        self._decodes[row] = False

    def problems(self) -> list[str]:
        """What is wrong with the books of rows and slots; empty if nothing is."""
        found = self.kv.problems(self.requests.values())
        taken = sorted([r.row for r in self.requests.values()] + self.rows.free_rows())
        if taken != list(range(self.rows.max_rows)):
            found.append(f"rows are lost or owned twice: {taken}")
        if np.flatnonzero(self._decodes).tolist() != sorted(self._decoding):
            found.append(f"rows {sorted(self._decoding)} decode, but others are planned")
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

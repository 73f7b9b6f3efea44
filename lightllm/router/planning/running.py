"""The requests that hold rows: what is planned for them, and how a round is made of it, undone, or left.

Planned state runs ahead of the results by up to two rounds; what results have confirmed is kept beside it, so that to
undo rounds is to copy. Both are arrays by row: a round of pure decode costs no Python work per request.
"""

from __future__ import annotations

import dataclasses
import heapq
from bisect import insort
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.protocol.rounds import Round, RowPooled, RowPromptLogprobs
from lightllm.router.memory.kv_cache_manager import KvCacheManager
from lightllm.router.planning.end_tokens import EndTokens
from lightllm.router.planning.planned_round import Chunk, DecodeBatch, PlannedRound
from lightllm.router.planning.recent_outputs import RecentOutputs
from lightllm.router.request import NO_ROW, Request, State
from lightllm.router.scheduler_config import SchedulerConfig

_Part = TypeVar("_Part", RowPromptLogprobs, RowPooled)


class Running:
    """Owns rows and slots. A running request is in exactly one of `prefilling`, the decoding ones, those whose outputs
    are all planned, or `pausing`."""

    def __init__(self, config: SchedulerConfig) -> None:
        max_rows = config.max_rows
        self.kv = KvCacheManager(config)
        self.free_rows = list(range(max_rows))
        """A heap: the lowest one is taken first, so that the tables stay dense."""
        self.requests: dict[int, Request] = {}
        self.prefilling: list[Request] = []
        """In the order in which they are served."""
        self.pausing: list[Request] = []
        self.kv_len = np.zeros(max_rows, dtype=np.int32)
        """Planned context length, by row: so many slots the row has."""
        self.confirmed_kv_len = np.zeros(max_rows, dtype=np.int32)
        """Context length that results have confirmed, by row."""
        self.remaining = np.zeros(max_rows, dtype=np.int32)
        """Outputs not yet planned, by row."""
        self.confirmed_remaining = np.zeros(max_rows, dtype=np.int32)
        """Outputs not yet confirmed, by row."""
        self.max_new_tokens = np.zeros(max_rows, dtype=np.int64)
        """By row."""
        self.recent_outputs = RecentOutputs(max_rows)
        self.by_row: list[Request | None] = [None] * max_rows
        self.ids = np.zeros(max_rows, dtype=np.int64)
        """Request ids, by row."""
        self.end_tokens = EndTokens()
        """Tokens that end a running request."""
        self._decode_tokens = config.decode_tokens
        self._generation = np.zeros(max_rows, dtype=np.int64)
        """How many requests have left each row."""
        self._prefilled = np.zeros(max_rows, dtype=bool)
        """Rows whose prefill has been planned to its end, or will not be (`pausing`)."""
        self.exact = np.zeros(max_rows, dtype=bool)
        """Whether nothing but its limit ends the output, by row."""
        self._decodes = np.zeros(max_rows, dtype=bool)
        """Rows that decode and have outputs to plan."""
        self._turn = np.zeros(max_rows, dtype=np.int64)
        """Of these, a count of when each began or had its last turn: if there are too many for one round, the lowest are next."""
        self._turns = 0
        self._batch: DecodeBatch | None = None
        self._no_rows = self._batch_of(self._decodes.nonzero()[0])
        self._leaves: list[int] = []
        self.now = 0.0
        """`time.monotonic()` of the round that is planned; 0: nobody says."""
        self.left = 0
        """How many requests have left their rows so far."""

    def enter(self, request: Request, may_wait: bool) -> None:
        """Gives the request a row and a place in memory; its prefill is planned from now on."""
        request.transition(State.PREFILLING)
        row = heapq.heappop(self.free_rows)
        request.row = row
        request.entered = request.entered or self.now
        self.by_row[row], self.ids[row] = request, request.id
        request.begin_prefill()
        request.may_wait, request.pooled = may_wait, None
        self.kv_len[row] = self.confirmed_kv_len[row] = self.kv.open(request)
        request.mark_in_context(0, request.shared, cached=True)
        self.remaining[row] = self.confirmed_remaining[row] = request.max_new_tokens - len(request.output_ids)
        self.max_new_tokens[row] = request.max_new_tokens
        self.end_tokens.add(request.end_token_ids)
        self.exact[row] = request.runs_to_limit
        self.requests[request.id] = request
        self.prefilling.append(request)

    def leave(self, request: Request, keep: bool = True) -> None:
        """Frees row and slots at once: rounds in flight run before any that reuses them. keep: what it computed stays in the
        prefix cache; otherwise it is not read any more."""
        self._out_of_plan(request)
        if request in self.pausing:
            self.pausing.remove(request)
        del self.requests[request.id]
        self.collect(request)
        self.kv.close(request, keep)
        self.end_tokens.remove(request.end_token_ids)
        row = request.row
        self.left += 1
        heapq.heappush(self.free_rows, row)
        self._leaves.append(row)
        self._generation[row] += 1
        self._prefilled[row] = False
        self.by_row[row] = None
        request.row = NO_ROW

    def start_pausing(self, request: Request) -> None:
        self._out_of_plan(request)
        self._prefilled[request.row] = True
        request.transition(State.PAUSING)
        self.pausing.append(request)

    def newest(self) -> Request | None:
        """The first to pause: of those that still want memory the worst priority, in it the latest arrival."""
        wanting = self.prefilling + self.in_rows(self._decodes.nonzero()[0])
        return max(wanting, key=lambda r: (r.priority, r.serial)) if wanting else None

    def decode_batch(self, limit: int) -> DecodeBatch:
        """At most `limit` of the decoding requests; more than that take turns."""
        if not limit:
            return self._no_rows
        if self._batch is None:
            self._batch = self._batch_of(self._decodes.nonzero()[0])
        if len(self._batch) > limit:
            rows = self._batch.rows
            return self._batch_of(rows[np.argsort(self._turn[rows])[:limit]], partial=True)
        return self._batch

    def _batch_of(self, rows: np.ndarray, partial: bool = False) -> DecodeBatch:
        """int64 [n] `rows`, a token of each."""
        ones = np.ones(len(rows), dtype=np.int32)
        rounds_left = int(self.remaining[rows].min()) if len(rows) else 0
        return DecodeBatch(
            rows, self._generation[rows], ones, ones.astype(np.uint8), len(rows), rounds_left, partial
        )

    def widened(self, batch: DecodeBatch, spare: int) -> DecodeBatch:
        """The batch where each row computes as many tokens as backends may bring at once and it may still generate, in turn,
        as long as they are no more than `spare` beside the first of each, and have slots."""
        more = np.minimum(self.remaining[batch.rows], self._decode_tokens) - 1
        more[np.cumsum(more) > spare] = 0
        return dataclasses.replace(
            batch, q_len=batch.q_len + more, tokens=len(batch) + int(more.sum()), rounds_left=1
        )

    def alive(self, planned: PlannedRound) -> np.ndarray:
        """bool [entries]: whose request has not left since."""
        return self._generation[planned.rows] == planned.generations

    def computes_for(self, planned: PlannedRound, request: Request) -> bool:
        """Whether it computes something for a request that has a row now."""
        return bool(self.alive(planned)[planned.rows == request.row].any())

    def requests_of(self, planned: PlannedRound) -> list[Request]:
        """Those that have not left since."""
        return self.in_rows(planned.rows[self.alive(planned)])

    def owners(self, planned: PlannedRound, parts: Sequence[_Part]) -> Iterator[tuple[_Part, Request]]:
        """The parts of a round's result, each of an entry, with their requests, if these have not left since."""
        alive = self.alive(planned) if parts else None
        for part in parts:
            assert alive is not None
            if alive[part.entry] and (request := self.by_row[planned.rows[part.entry]]) is not None:
                yield part, request

    def prefilled_rows(self) -> np.ndarray:
        """int64 [n], ascending: rows that are past their prefill."""
        return self._prefilled.nonzero()[0]

    def in_rows(self, rows: np.ndarray) -> list[Request]:
        """The requests in these rows."""
        return [request for row in rows.tolist() if (request := self.by_row[row]) is not None]

    def ending_tokens(self) -> int:
        """Slots that are free as soon as what is in flight has returned: of those that have all outputs planned, or pause."""
        rows = self.prefilled_rows()
        ending = int(self.kv_len[rows[self.remaining[rows] == 0]].sum())
        return ending + sum(int(self.kv_len[request.row]) for request in self.pausing)

    def confirm(
        self,
        planned: PlannedRound,
        alive: np.ndarray,
        rows: np.ndarray,
        tokens: np.ndarray,
        counts: np.ndarray,
    ) -> list[int]:
        """The round was computed. `tokens` (int32 [t]) have come for `rows` (int64 [t]), `counts` (int [entries]) from each
        entry; the entries, of those `alive`, whose outputs are complete. Slots for tokens that did not come are free again."""
        entries, at, kv_len = None, planned.rows, planned.kv_len
        if planned.tokens > planned.num_decode or len(tokens) < len(at):
            unused = planned.q_len - counts
            unused[planned.num_decode :] = 0
            entries = alive.nonzero()[0]
            at, kv_len, counts = at[entries], (kv_len - unused)[entries], counts[entries].astype(np.int32)
        remaining = self.confirmed_remaining[at] - counts
        self.confirmed_kv_len[at] = kv_len
        self.confirmed_remaining[at] = remaining
        if self._decode_tokens > 1:  # one of each row at a time
            while len(rows):
                again = np.zeros(len(rows), dtype=bool)
                np.equal(rows[1:], rows[:-1], out=again[1:])
                self._record(rows[~again], tokens[~again])
                rows, tokens = rows[again], tokens[again]
        else:
            self._record(rows, tokens)
        if entries is not None and self._decode_tokens > 1:
            self._free_unused(at[unused[entries] > 0])
        complete = (remaining == 0).nonzero()[0]
        return (complete if entries is None else entries[complete]).tolist()

    def _record(self, rows: np.ndarray, tokens: np.ndarray) -> None:
        """A token (int32 [n]) of each of `rows` (int64 [n], distinct)."""
        for row in self.recent_outputs.append(rows, tokens):
            request = self.by_row[row]
            assert request is not None
            self.collect(request)

    def collect(self, request: Request) -> None:
        """Brings `output_ids` of a request with a row up to date."""
        request.output_ids.frombytes(self.recent_outputs.take(request.row))

    def _free_unused(self, rows: np.ndarray) -> None:
        """Planned state of these (int64 [n]), of which no other round is in flight, becomes what is confirmed."""
        self.kv_len[rows] = self.confirmed_kv_len[rows]
        self.remaining[rows] = self.confirmed_remaining[rows]
        for request in self.in_rows(rows):
            self.kv.keep(request, int(self.kv_len[request.row]))
            if request.state is State.DECODING:
                self._decode(request.row)

    def work(self, request: Request) -> int:
        """Tokens that a prefilling request has still to compute."""
        return len(request.context) - int(self.kv_len[request.row])

    def extend_prefixes(self, reserve: int) -> None:
        """Prompts that prefill skip what others have computed in the meantime; `reserve` slots stay available."""
        for request in self.prefilling:
            before = int(self.kv_len[request.row])
            known = self.kv.extend(request, before, reserve)
            if known > before:
                self.kv_len[request.row] = self.confirmed_kv_len[request.row] = known
                request.needs_join = True
                request.mark_in_context(before, known, cached=True)

    def plan(self, seq: int, batch: DecodeBatch, chunks: list[Chunk]) -> tuple[Round, PlannedRound]:
        """Takes the slots, advances the planned state, and makes the round. Memory has been checked."""
        rows, q_len = batch.rows, batch.q_len
        self.kv.make_free(batch.tokens + sum(chunk.end - chunk.start for chunk in chunks))
        slots = self.kv.own.take(rows, q_len, batch.tokens) if len(rows) else EMPTY_INT32
        kv_len = self.kv_len[rows] + q_len
        self.kv_len[rows] = kv_len
        self.remaining[rows] -= q_len
        round_ = Round(
            seq, len(rows), rows.astype(np.int32), q_len, kv_len, batch.samples, EMPTY_INT32, slots, leaves=self._leaves
        )  # fmt: skip
        self._leaves = []
        self._after_decode(batch)
        generations, sampled = batch.generations, len(rows)
        if chunks:
            round_ = self._with_chunks(round_, chunks)
            rows = round_.rows.astype(np.int64)
            generations, sampled = self._generation[rows], int(np.count_nonzero(round_.samples))
        planned = PlannedRound(
            seq, rows, generations, round_.q_len, round_.kv_len, round_.samples, sampled, round_.leaves, len(batch),
            prefill_tokens=len(round_.token_ids), tokens=len(round_.slots),
        )  # fmt: skip
        return round_, planned

    def undo(self, rounds: list[PlannedRound]) -> None:
        """Takes back all rounds in flight (oldest first), which were never executed: their requests prefill again what has
        no KV, beginning with a join, for their rows may be void. So do those that share what these rounds were to compute."""
        for planned in reversed(rounds):
            self._leaves = planned.leaves + self._leaves
        undone = {
            request.id: request
            for request in self.in_rows((self.kv_len != self.confirmed_kv_len).nonzero()[0])
        }
        np.copyto(self.kv_len, self.confirmed_kv_len)
        np.copyto(self.remaining, self.confirmed_remaining)
        for request in self.kv.take_back(rounds[0].seq, self.requests.values()):
            self.kv_len[request.row] = self.confirmed_kv_len[request.row] = request.shared
            request.may_wait = True  # for the request that computes it again
            undone[request.id] = request
        for request in undone.values():
            kv_len = int(self.kv_len[request.row])
            self.kv.keep(request, kv_len)
            request.mark_lost(kv_len)
            self.collect(request)
            request.begin_prefill()
            if request.state is State.DECODING:
                self._out_of_plan(request)
                self._prefilled[request.row] = False
                request.transition(State.PREFILLING)
                insort(self.prefilling, request, key=lambda r: r.serial)

    def _with_chunks(self, decode: Round, chunks: list[Chunk]) -> Round:
        """The round with prefill chunks behind its decode entries."""
        joins, slot_parts, samples = [], [decode.slots], []
        for request, start, end in chunks:
            if request.needs_join:
                joins.append(request.join_row(self.kv.slots(request)))
                request.needs_join = False
            slot_parts.append(self.kv.take_chunk(request, start, end, decode.seq))
            request.mark_in_context(start, end, cached=False)
            self.kv_len[request.row] = end
            samples.append(end == len(request.context))
            if samples[-1]:
                self._start_decoding(request)
        rows, q_len, kv_len = np.array(
            [(r.row, end - start, end) for r, start, end in chunks], dtype=np.int32
        ).T
        return msgspec.structs.replace(
            decode,
            rows=np.concatenate([decode.rows, rows]),
            q_len=np.concatenate([decode.q_len, q_len]),
            kv_len=np.concatenate([decode.kv_len, kv_len]),
            samples=np.concatenate([decode.samples, np.array(samples, dtype=np.uint8)]),
            token_ids=np.concatenate([r.context[start:end] for r, start, end in chunks]).astype(
                np.int32, copy=False
            ),
            slots=np.concatenate(slot_parts),
            joins=joins,
        )

    def _start_decoding(self, request: Request) -> None:
        """Its last chunk is planned, and with it one output."""
        request.transition(State.DECODING)
        row = request.row
        self.prefilling.remove(request)
        self._prefilled[row] = True
        self.remaining[row] -= 1
        self._decode(row)

    def _decode(self, row: int) -> None:
        """It takes part in what is planned from now on, if it has outputs to plan."""
        self._batch = None
        if self.remaining[row] and not self._decodes[row]:
            self._decodes[row] = True
            self._turn[row] = self._turns
            self._turns += 1

    def _after_decode(self, batch: DecodeBatch) -> None:
        """Those whose last output this round plans decode no more: a length end is known when planning. A row that had a turn goes
        last."""
        if not len(batch):
            return
        batch.rounds_left -= 1
        if not batch.rounds_left:
            self._decodes[batch.rows[self.remaining[batch.rows] == 0]] = False
            self._batch = None
        if batch.partial:
            self._turn[batch.rows] = self._turns + np.arange(len(batch))
            self._turns += len(batch)

    def _out_of_plan(self, request: Request) -> None:
        if self._decodes[request.row]:
            self._decodes[request.row] = False
            self._batch = None
        elif request in self.prefilling:
            self.prefilling.remove(request)

    def check(self) -> list[str]:
        """What is wrong with the books of rows and slots; empty if nothing is."""
        found = self.kv.check(self.requests.values())
        taken = sorted([r.row for r in self.requests.values()] + self.free_rows)
        if taken != list(range(len(self.by_row))):
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

"""The scheduler: what runs in the next round. No socket, no clock, no torch.

    add, abort  ->  waiting  ->  running  ->  next_round() -> Round ... apply(RoundResult) -> RoundTokens

The Router process, the offline `LLM` and the tests drive this object alike. Up to two rounds are in flight: while one
runs, the next is planned from what is known. A result ends requests one round late; what ran over is dropped.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from lightllm.ipc.kv_map import KvMap
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.messages import AddRequest, FinishReason, RoundTokens, worker_of
from lightllm.protocol.rounds import Round, RoundResult, RowError, first_seq
from lightllm.router.admission.controller import AdmissionController
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.overload import OverloadControl
from lightllm.router.admission.schedule_policy import AdmissionPolicy, make_policy
from lightllm.router.admission.slo import SloController
from lightllm.router.admission.step_time import StepTimeModel
from lightllm.router.admission.wait import WaitPredictor
from lightllm.router.admission.waiting import WaitingList
from lightllm.router.intake import check_request
from lightllm.router.isolation import Isolation
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.memory.radix_node import Node
from lightllm.router.outputs import Outputs
from lightllm.router.planning.new_tokens import NewTokens, is_answer
from lightllm.router.planning.planned_round import PlannedRound
from lightllm.router.planning.planner import Planner
from lightllm.router.planning.running import Running
from lightllm.router.request import Request, State
from lightllm.router.scheduler_config import SchedulerConfig

MAX_IN_FLIGHT = 2
MAX_FAILURES = 3
"""Failures in a row after which the requests of the failing round are told apart."""
REMEMBERED_ABORTS = 4096
"""Aborts of unknown ids that are kept: one may overtake its request. More than a minute's worth."""

logger = logging.getLogger(__name__)


class Applied(NamedTuple):
    """What follows from a result."""

    tokens: RoundTokens | None
    """All that is to be sent now, as of `drain_outputs`."""
    resync: int | None = None
    """After a failed round: the sequence number of the next one, for `Resync`."""


class InvariantError(Exception):
    """The books of rows and slots contradict each other."""


class Scheduler:
    """Continuous batching over token memory. Methods never block; `RequestError`s are for the client."""

    def __init__(
        self,
        config: SchedulerConfig,
        policy: AdmissionPolicy | None = None,
        lengths: OutputLengths | None = None,
        epoch: int = 0,
        counts: Snapshot | None = None,
    ) -> None:
        """`policy`: that of the options unless given; `lengths`: of the outputs seen before; `epoch`: of the Router, whose
        rounds are numbered by it; `counts`: counters that go on."""
        self.config = config
        self._policy = policy or make_policy(config)
        self._lengths = OutputLengths() if lengths is None else lengths
        self._outputs = Outputs()
        self._in_flight: list[PlannedRound] = []
        self._isolation = Isolation()
        self._clear_books()
        self._early_aborts: OrderedDict[int, FinishReason] = OrderedDict()
        self._next_seq = first_seq(epoch)
        self._serial = 0
        self._failures = 0
        self._counts = counts or Snapshot()
        self._former_pauses = self._counts.pauses
        """Before the present books."""
        self._counts.slots_total = config.max_total_token_num
        self._counts.max_req_total_len = config.max_req_total_len

    # -- intake

    def add(self, message: AddRequest, now: float = 0.0) -> None:
        """Accepts all choices or none; raises `PromptTooLong`, `InvalidParameter` or `ServerOverloaded`."""
        try:
            check_request(message, self.config, self._requests.keys())
            self._overload.check(message, now)
        except Exception:
            self._counts.refused += len(message.choices)
            raise
        params = message.params
        end_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            end_token_ids |= frozenset(self.config.eos_token_ids)
        group = [
            Request(message, choice, self._serial + number, self._serial, end_token_ids)
            for number, choice in enumerate(message.choices)
        ]
        self._serial += len(group)
        self._counts.restored += len(group) if message.restored else 0
        self._requests |= {request.id: request for request in group}
        self._waiting.add(group)
        for request in group:
            reason = self._early_aborts.pop(request.id, None) or request.finish_reason()
            if reason is not None:
                self._finish(request, reason)

    def abort(self, request_id: int, reason: FinishReason = "abort") -> None:
        """Ends a request in whatever state it is; one that is unknown will end when it arrives."""
        request = self._requests.get(request_id)
        if request is not None:
            self._finish(request, reason)
            return
        self._early_aborts[request_id] = reason
        if len(self._early_aborts) > REMEMBERED_ABORTS:
            self._early_aborts.popitem(last=False)

    def abort_former(self, first_id: int) -> int:
        """Ends the requests that an Http worker sent before its present life, which begins with this request id; how many."""
        former = [i for i in self._requests if i < first_id and worker_of(i) == worker_of(first_id)]
        for request_id in former:
            self.abort(request_id)
        return len(former)

    # -- planning

    def next_round(self, now: float = 0.0) -> Round | None:
        """Plans one more round; None if two are in flight already or there is nothing to compute now."""
        most = MAX_IN_FLIGHT if self.config.decode_tokens == 1 else 1
        if len(self._in_flight) >= most or not self._requests:
            return None
        if self._isolation and self._in_flight:
            return None  # what runs next depends on how that round ends
        self._admission.seq = self._next_seq
        self._running.now = now
        chosen = None
        while chosen is None and (suspects := self._isolation.next_group()):
            chosen = self._planner.choose_of(suspects)
        chosen = chosen or self._planner.choose(now)
        if chosen is None:
            return None
        round_, planned = self._running.plan(self._next_seq, *chosen)
        self._next_seq += 1
        self._in_flight.append(planned)
        return round_

    # -- results

    def apply(self, result: RoundResult) -> Applied:
        """Takes the result of the oldest round in flight. That of a round that is not in flight (undone meanwhile) is
        ignored."""
        if all(planned.seq != result.seq for planned in self._in_flight):
            return Applied(self.drain_outputs())
        planned, resync = self._in_flight[0], None
        if result.failed:
            resync = self._undo(result.failed, result.out_of_memory)
        elif planned.seq != result.seq or not is_answer(result, planned):
            resync = self._undo(f"round {planned.seq} has no valid result", False)
        else:
            del self._in_flight[0]
            self._wait.round_done(planned, result.seconds)
            self._confirm(planned, result)
        self._planner.settle_pausing()
        return Applied(self.drain_outputs(), resync)

    def _confirm(self, planned: PlannedRound, result: RoundResult) -> None:
        running, outputs, counts = self._running, self._outputs, self._counts
        for entry, error in result.errors.items():
            self._end_row(planned, entry, error)
        for part, request in running.owners(planned, result.prompt_logprobs):
            outputs.add_prompt_logprobs(request, part)
        for pooled, request in running.owners(planned, result.pooled):
            request.add_pooled(pooled.values)
        new = NewTokens.of(result, planned, running)
        if len(planned.rows) > planned.num_decode:
            chunks = slice(planned.num_decode, None)
            self._after_prefill(running.in_rows(planned.rows[chunks][new.counts[chunks] > 0]))
        complete = running.confirm(planned, new.alive, new.rows, new.token_ids, new.counts)
        outputs.add(running.ids[new.rows], new)
        ending = sorted({*new.ended, *complete})
        for request in running.in_rows(planned.rows[ending]) if ending else ():
            running.collect(request)
            if (reason := request.finish_reason()) is not None:
                self._finish(request, reason if request.pooled is None else "stop")
        counts.output_tokens += 0 if self.config.options.pools else len(new.token_ids)
        counts.prompt_tokens += planned.prefill_tokens
        counts.rounds += 1
        self._failures = 0
        if self._isolation:
            self._isolation.succeeded(running.requests_of(planned))
        self._planner.round_succeeded()

    def _after_prefill(self, requests: list[Request]) -> None:
        """A token was sampled behind the context of these."""
        for request in requests:
            self._running.kv.vouch(request)
            if not request.prompt_done:
                request.prompt_done = True
                self._outputs.begin(request)

    def _undo(self, reason: str, out_of_memory: bool) -> int:
        """Planned state returns to what results have confirmed; the same work is planned anew. Returns the sequence number
        of the next round."""
        failed = self._in_flight[0]
        concerned = self._running.requests_of(failed)
        self._running.undo(self._in_flight)
        self._in_flight.clear()
        self._failures += 1
        if out_of_memory:
            self._planner.round_too_large(failed.tokens)
        logger.warning("round %d failed (%d in a row): %s", failed.seq, self._failures, reason)
        if self._failures >= MAX_FAILURES or self._isolation:
            for request in self._isolation.failed(concerned):
                self._finish(request, "error", f"the model backend failed: {reason}", keep=False)
        return self._next_seq

    def _end_row(self, planned: PlannedRound, entry: int, error: RowError) -> None:
        """The backend cannot go on with one request; one that has left meanwhile has ended otherwise."""
        request = self._running.by_row[planned.rows[entry]]
        if request is None or not self._running.alive(planned)[entry]:
            return
        if error.kind == "constraint":
            self._finish(request, "error", error.reason, "InvalidParameter")
            return
        logger.error("request %d ends, and no other: %s", request.id, error.reason)
        self._counts.not_finite += error.kind == "not_finite"
        self._counts.row_failures += error.kind == "row"
        self._finish(request, "error", error.reason, keep=False)

    def flush_cache(self) -> int:
        """Empties the prefix cache of what is not read now; how many tokens that were."""
        return self._running.kv.flush()

    def watch_cache(self, ledger: BlockLedger) -> None:
        """Tells it of every change of the prefix cache, which is empty now."""
        self._running.kv.cache.ledger = ledger

    def cached_nodes(self) -> Iterator[Node]:
        """Of the prefix cache, each before its children."""
        return self._running.kv.cache.nodes()

    def drain_outputs(self) -> RoundTokens | None:
        """Everything that is to be sent since the last call: tokens, and finishes of aborted requests."""
        return self._outputs.drain()

    def _finish(
        self,
        request: Request,
        reason: FinishReason | str,
        error: str = "",
        error_type: str = "BackendFailed",
        keep: bool = True,
    ) -> None:
        """The one way in which a request ends; frees its row and slots. keep: as `Running.leave`."""
        if request.state in (State.WAITING, State.PAUSED):
            self._waiting.discard(request)
        else:
            self._running.leave(request, keep)
        aborted = reason in ("abort", "timeout", "error")
        request.transition(State.ABORTED if aborted else State.FINISHED)
        if not request.runs_to_limit:
            self._lengths.add(len(request.output_ids), reason == "stop", self._admission.seq)
        self._counts.aborted += aborted
        self._counts.finished += not aborted
        del self._requests[request.id]
        self._outputs.finish(request, reason, error, error_type)  # type: ignore[arg-type]

    # -- state

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def in_flight(self) -> int:
        """Rounds without a result."""
        return len(self._in_flight)

    @property
    def oldest_in_flight(self) -> int | None:
        """The number of the round whose result comes next."""
        return self._in_flight[0].seq if self._in_flight else None

    @property
    def pauses(self) -> int:
        """How often requests had to pause, so far."""
        return self._planner.pauses

    def snapshot(self) -> Snapshot:
        """Counters and load. The caller fills in `ready`, `vocab_size` and the times; the object is reused."""
        counts = self._counts
        counts.running = len(self._running.requests)
        counts.waiting = self._waiting.count
        counts.paused = self._waiting.paused
        counts.pauses = self._former_pauses + self._planner.pauses
        counts.slots_used = self._running.kv.in_use
        counts.slots_cached = self._running.kv.cache.evictable
        counts.in_flight_rounds = len(self._in_flight)
        counts.estimated_peak = self._admission.estimate_peak()
        return counts

    def kv_map(self, now: float) -> KvMap:
        """Who has which part of the KV memory, for people. `now`: when it is drawn."""
        return self._running.kv.draw(now)

    def check_invariants(self) -> None:
        """Free + cached + in use = all slots, no slot owned twice, every row owned once; raises `InvariantError`."""
        found = self._running.check()
        waiting = sum(r.state in (State.WAITING, State.PAUSED) for r in self._requests.values())
        if waiting != self._waiting.count or waiting + len(self._running.requests) != len(self._requests):
            found.append(
                f"{len(self._requests)} requests, of which {len(self._running.requests)} run and {waiting} wait; "
                f"the waiting list says {self._waiting.count}"
            )
        if found:
            raise InvariantError("; ".join(found))

    def repair(self) -> None:
        """Books from scratch, after a breach; only while nothing is in flight and nothing runs."""
        if self._in_flight or self._running.requests:
            raise RuntimeError("only an idle scheduler can be repaired")
        self._former_pauses += self._planner.pauses
        ledger = self._running.kv.cache.ledger
        self._clear_books()
        if ledger is not None:
            ledger.clear()
            self.watch_cache(ledger)

    def _clear_books(self) -> None:
        self._requests: dict[int, Request] = {}
        self._running = Running(self.config)
        self._waiting = WaitingList()
        times = StepTimeModel()
        slo = SloController(self.config, times)
        self._wait = WaitPredictor(
            self.config, self._lengths, self._running, self._waiting, times, slo, self._in_flight
        )
        self._overload = OverloadControl(self.config, self._lengths, self._running, self._waiting, self._wait)
        self._admission = AdmissionController(
            self.config, self._policy, self._lengths, self._running, self._waiting, slo, self._wait
        )
        self._planner = Planner(
            self.config, self._running, self._waiting, self._admission, slo, self._in_flight
        )

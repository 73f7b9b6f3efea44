"""Requests that wait in the controller, because every worker of their model has as many as it takes.

    arrival ── a worker has room, and nobody waits ──> Ticket
       └─ else, if there is room to wait ──> Waiter ── a request ends, a worker comes ──> Ticket
                                                └─ its client leaves, or loses patience ──> gone

A better priority (less) goes first. Within one, tenants share what becomes free in equal parts of tokens, whatever each has waiting
(start-time fair queueing; Goyal, Vin, Cheng 1996); of one tenant the first that came is first. No socket and no timer: the
proxy and the tests drive it.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator

from lightllm.cluster.ask import Ask
from lightllm.cluster.dispatcher import AllFull, Dispatcher, NoWorker
from lightllm.cluster.worker import Ticket
from lightllm.errors import RequestError

_FRESH = 0.2
"""Weight of the last interval between two requests that were let in."""
_MOST_SECONDS = 60
_FEW = 64


class TenantQueueFull(RequestError, status=429, code="queue_full", kind="rate_limit_error"):
    """One tenant has as many requests waiting as one may have."""


class Waiter:
    """`ticket` or `error` is set once, then `wake` is called."""

    def __init__(self, ask: Ask, tenant: str, priority: int, wake: Callable[[], object]) -> None:
        self.ask = ask
        self.tenant = tenant
        self.priority = priority
        self.ticket: Ticket | None = None
        self.error: RequestError | None = None
        self.left = False
        self._wake = wake

    @property
    def waits(self) -> bool:
        return self.ticket is None and self.error is None and not self.left

    def tell(self, ticket: Ticket | None, error: RequestError | None) -> None:
        self.ticket, self.error = ticket, error
        self._wake()


@dataclasses.dataclass
class _Line:
    """Of one model."""

    heap: list[tuple[int, float, int, Waiter]] = dataclasses.field(default_factory=list)
    """(priority, tokens that its tenant had been given when it started, number of arrival, waiter)."""
    given: float = 0.0
    """The virtual time: the start of the last one that was let in, tokens."""
    ends: dict[tuple[int, str], float] = dataclasses.field(default_factory=dict)
    """Of each tenant with something waiting: where its last request ends, tokens."""


class WaitingRoom:
    def __init__(self, dispatcher: Dispatcher, most: int, most_of_tenant: int) -> None:
        self._dispatcher = dispatcher
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._lines: dict[str, _Line] = {}
        self._waiting: Counter[str] = Counter()
        """By tenant."""
        self._serial = 0
        self._interval = 0.0
        """Seconds between two that are let in, lately."""
        self._last = 0.0
        dispatcher.on_room.append(self.let_in)

    def __len__(self) -> int:
        return self._waiting.total()

    def waiting(self) -> Iterator[Waiter]:
        for line in self._lines.values():
            yield from (entry[3] for entry in line.heap if entry[3].waits)

    def enter(self, ask: Ask, tenant: str, priority: int, wake: Callable[[], object]) -> Ticket | Waiter:
        """Raises `NoWorker`, `UnknownModel` or `TenantQueueFull`."""
        if ask.model not in self._lines:
            try:
                return self._dispatcher.send(ask)
            except AllFull:
                pass
        if self._waiting[tenant] >= self._most_of_tenant:
            raise TenantQueueFull(
                f"{self._most_of_tenant} requests of yours wait already, the most that one may have waiting",
                retry_after=self._retry_after(),
            )
        if len(self) >= self._most:
            raise NoWorker(
                f"all workers of {ask.model!r} have as many requests as they take, and {self._most} wait already",
                retry_after=self._retry_after(),
            )
        return self._append(Waiter(ask, tenant, priority, wake))

    def leave(self, waiter: Waiter) -> None:
        """Its client has left, or waits no longer. A ticket that it has got is given back."""
        if waiter.waits:
            waiter.left = True
            self._counted_out(waiter)
            self._sweep(waiter.ask.model)
        elif waiter.ticket is not None:
            waiter.ticket.close()

    def let_in(self) -> None:
        """There may be room: whoever is first goes, as long as one can."""
        for model in list(self._lines):
            while (waiter := self._first(model)) is not None:
                try:
                    ticket = self._dispatcher.send(waiter.ask)
                except AllFull:
                    break
                except RequestError as error:
                    self._pop(model)
                    waiter.tell(None, error)
                else:
                    self._pop(model)
                    self._note()
                    waiter.tell(ticket, None)

    def overdue(self, seconds: float) -> NoWorker:
        return NoWorker(
            f"no worker had room for the request within {seconds:g} s", retry_after=self._retry_after()
        )

    def _append(self, waiter: Waiter) -> Waiter:
        line = self._lines.setdefault(waiter.ask.model, _Line())
        flow = waiter.priority, waiter.tenant
        start = max(line.given, line.ends.get(flow, 0.0))
        line.ends[flow] = start + waiter.ask.prompt_tokens + waiter.ask.output_tokens
        self._serial += 1
        heapq.heappush(line.heap, (waiter.priority, start, self._serial, waiter))
        self._waiting[waiter.tenant] += 1
        return waiter

    def _first(self, model: str) -> Waiter | None:
        self._sweep(model)
        line = self._lines.get(model)
        return line.heap[0][3] if line else None

    def _sweep(self, model: str) -> None:
        """Those that have left: in front, and all where they are many."""
        line = self._lines.get(model)
        if line is None:
            return
        if len(line.heap) > _FEW + 2 * len(self):
            line.heap = [entry for entry in line.heap if entry[3].waits]
            heapq.heapify(line.heap)
        while line.heap and not line.heap[0][3].waits:
            heapq.heappop(line.heap)
        if not line.heap:
            del self._lines[model]

    def _pop(self, model: str) -> None:
        line = self._lines[model]
        _, start, _, waiter = heapq.heappop(line.heap)
        line.given = max(line.given, start)
        self._counted_out(waiter)
        if not line.heap:
            del self._lines[model]

    def _counted_out(self, waiter: Waiter) -> None:
        self._waiting[waiter.tenant] -= 1
        if not self._waiting[waiter.tenant]:
            del self._waiting[waiter.tenant]

    def _note(self) -> None:
        now = self._dispatcher.now()
        if self._last:
            self._interval += _FRESH * (now - self._last - self._interval)
        self._last = now

    def _retry_after(self) -> int:
        """Seconds until those that wait now will have been let in."""
        return max(2, min(_MOST_SECONDS, math.ceil(len(self) * self._interval)))

"""Requests that wait in the controller, because every worker of their model has as many as it takes.

    arrival ── a worker has room, and nobody waits ──> Ticket
       └─ else, if there is room to wait ──> Waiter ── a request ends, a worker comes ──> Ticket
                                                └─ its client leaves, or loses patience ──> gone

A better priority (less) goes first. Within one, tenants share what becomes free in equal parts of tokens, whatever each has waiting
(start-time fair queueing; Goyal, Vin, Cheng 1996); of one tenant the first that came is first. A request is charged when it is let
in: one whose client leaves before that costs its tenant nothing. No socket and no timer: the proxy and the tests drive it.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections import Counter, OrderedDict
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
class _Flow:
    """Of one tenant and priority."""

    queue: OrderedDict[Waiter, tuple[float, int]] = dataclasses.field(default_factory=OrderedDict)
    """In their order; the virtual time when each came, and its number."""
    end: float = 0.0
    """Where its last request that was let in ends, tokens."""


class _Line:
    """Of one model."""

    def __init__(self) -> None:
        self.given = 0.0
        """The virtual time: the start of the last one that was let in, tokens."""
        self._flows: dict[tuple[int, str], _Flow] = {}
        self._heads: list[tuple[int, float, int, Waiter]] = []
        """A heap: priority, start, number and waiter of the first one of each flow; beside them, some that have left."""

    def __iter__(self) -> Iterator[Waiter]:
        return (waiter for flow in self._flows.values() for waiter in flow.queue)

    def append(self, waiter: Waiter, number: int) -> None:
        flow = self._flows.setdefault((waiter.priority, waiter.tenant), _Flow())
        flow.queue[waiter] = self.given, number
        if len(flow.queue) == 1:
            self._push_head(flow)

    def first(self) -> Waiter | None:
        """The one whose turn it is."""
        while self._heads and not self._is_head(self._heads[0]):
            heapq.heappop(self._heads)
        return self._heads[0][3] if self._heads else None

    def remove(self, waiter: Waiter, let_in: bool) -> None:
        """let_in: its tenant is charged, and it is the first one."""
        flow = self._flows[waiter.priority, waiter.tenant]
        first = next(iter(flow.queue)) is waiter
        came, _ = flow.queue.pop(waiter)
        if let_in:
            start = max(came, flow.end)
            self.given = max(self.given, start)
            flow.end = start + waiter.ask.prompt_tokens + waiter.ask.output_tokens
        if first and flow.queue:
            self._push_head(flow)
        if not flow.queue and flow.end <= self.given:  # it is as one that has never had anything
            del self._flows[waiter.priority, waiter.tenant]
        if len(self._heads) > _FEW + 2 * len(self._flows):
            self._tidy()

    def _push_head(self, flow: _Flow) -> None:
        waiter, (came, number) = next(iter(flow.queue.items()))
        heapq.heappush(self._heads, (waiter.priority, max(came, flow.end), number, waiter))

    def _is_head(self, entry: tuple[int, float, int, Waiter]) -> bool:
        flow = self._flows.get((entry[0], entry[3].tenant))
        return flow is not None and next(iter(flow.queue), None) is entry[3]

    def _tidy(self) -> None:
        """Lets go of those that have left, and of flows that have got no more than their share."""
        self._heads = [entry for entry in self._heads if self._is_head(entry)]
        heapq.heapify(self._heads)
        self._flows = {key: flow for key, flow in self._flows.items() if flow.queue or flow.end > self.given}


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
            yield from line

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
            self._remove(waiter, let_in=False)
            waiter.left = True
        elif waiter.ticket is not None:
            waiter.ticket.close()

    def let_in(self) -> None:
        """There may be room: whoever is first goes, as long as one can."""
        for model in list(self._lines):
            while (line := self._lines.get(model)) and (waiter := line.first()) is not None:
                try:
                    ticket = self._dispatcher.send(waiter.ask)
                except AllFull:
                    break
                except RequestError as error:
                    self._remove(waiter, let_in=False)
                    waiter.tell(None, error)
                else:
                    self._remove(waiter, let_in=True)
                    self._note()
                    waiter.tell(ticket, None)

    def overdue(self, seconds: float) -> NoWorker:
        return NoWorker(
            f"no worker had room for the request within {seconds:g} s", retry_after=self._retry_after()
        )

    def _append(self, waiter: Waiter) -> Waiter:
        self._serial += 1
        self._lines.setdefault(waiter.ask.model, _Line()).append(waiter, self._serial)
        self._waiting[waiter.tenant] += 1
        return waiter

    def _remove(self, waiter: Waiter, let_in: bool) -> None:
        line = self._lines[waiter.ask.model]
        line.remove(waiter, let_in)
        if line.first() is None:
            del self._lines[waiter.ask.model]
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

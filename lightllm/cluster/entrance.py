"""A request's way in: what its key may ask for, then a place on a worker, at once or after a wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import Scope

from lightllm.cluster.ask import Ask, read_body
from lightllm.cluster.metrics import ControllerMetrics
from lightllm.cluster.rates import Charge, Rates
from lightllm.cluster.request_fields import fields_of, priority, with_priority
from lightllm.cluster.waiting import WaitingRoom
from lightllm.cluster.worker import Ticket
from lightllm.errors import RequestError
from lightllm.http.auth import caller
from lightllm.http.key_ring import KeyRing, KeyTerms

_FARTHEST = 1000
"""From 0, that a priority counts."""


class Bodies(NamedTuple):
    """One request, for servers that differ in what they take."""

    own: bytes
    """For servers and controllers of ours."""
    others: bytes
    """Without a priority that the client has not named: servers may refuse any."""


class Entrance:
    def __init__(
        self, keys: KeyRing, rates: Rates, waiting: WaitingRoom, metrics: ControllerMetrics, patience: float
    ) -> None:
        """patience: seconds that a request may wait."""
        self._keys = keys
        self._rates = rates
        self._waiting = waiting
        self._metrics = metrics
        self._patience = patience

    @contextlib.contextmanager
    def charged(self, scope: Scope, ask: Ask) -> Iterator[Charge | None]:
        """Around the whole request. None: its key has no terms. Raises `RateLimited`."""
        key = caller(Request(scope)).key
        terms = self._keys.terms.get(key) if key else None
        if terms is None:
            yield None
            return
        charge = self._rates.charge(key or "", terms, ask)
        answered = True
        try:
            yield charge
        except RequestError:
            answered = False
            raise
        finally:
            charge.settle(answered)

    def bodies(self, scope: Scope, body: bytes, ask: Ask) -> Bodies:
        """The request as workers get it: a key binds the servers' waiting lists as well as this one."""
        key, path = caller(Request(scope)).key, scope["path"]
        terms = self._keys.terms.get(key) if key else None
        if terms is None or not fields_of(path).has_priority:
            return Bodies(body, body)
        bound = with_priority(path, body, _bound(ask.priority, terms))
        return Bodies(bound, body if priority(path, read_body(body)) is None else bound)

    async def place(self, scope: Scope, ask: Ask) -> Ticket:
        """Raises `NoWorker`, `UnknownModel` or `TenantQueueFull`."""
        key = caller(Request(scope)).key
        terms = self._keys.terms.get(key) if key else None
        urgency = _bound(ask.priority, terms)
        tenant = (terms.tenant if terms else "") or key or ""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        entered = self._waiting.enter(ask, tenant, urgency, wake)
        if isinstance(entered, Ticket):
            return entered
        begun = asyncio.get_running_loop().time()
        try:
            await asyncio.wait_for(woken, self._patience)
        except TimeoutError:
            if entered.ticket is None and entered.error is None:
                self._waiting.leave(entered)
                raise self._waiting.overdue(self._patience) from None
        except BaseException:
            self._waiting.leave(entered)
            raise
        finally:
            self._metrics.waited.observe(asyncio.get_running_loop().time() - begun)
        if entered.error is not None:
            raise entered.error
        assert entered.ticket is not None
        return entered.ticket


def _bound(asked: int, terms: KeyTerms | None) -> int:
    """The priority of a request: the one that it asks for, or the best of its key if that is worse (more)."""
    best = -_FARTHEST if terms is None else terms.priority
    return max(best, min(_FARTHEST, max(-_FARTHEST, asked)))

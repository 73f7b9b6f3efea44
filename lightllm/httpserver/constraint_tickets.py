"""Constraints of requests whose matchers the Model Backend is making: such a request goes to the Router when its matcher is there, so
that no round, which is that of others too, waits for it. Runs in the event loop.

asked --ConstraintPrepared--> done
  |----Hello (a Router has begun; it may be a backend that was started again)--> asked again
  |----nothing comes for `ASK_SECONDS`; its turn may not have come yet---------> asked again
  |----nothing comes for `PATIENCE_SECONDS`------------------------------------> the request goes on: its round waits
  '----the request is aborted, or the server ends------------------------------> the request ends, unsent
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

from lightllm.constraints.check import check_threads
from lightllm.constraints.grammars import Constraint, constraint_of, grammar_of
from lightllm.httpserver.tickets import Tickets
from lightllm.protocol.messages import ConstraintPrepared, PrepareConstraint
from lightllm.sampling_params import SamplingParams

_log = logging.getLogger(__name__)

ASK_SECONDS = 10.0
"""More often than `constraints.prepared` forgets what nobody asks for."""
PATIENCE_SECONDS = 600.0
"""The largest schemas take 0.4 s of one processor at most; beside a model that computes on all of them, some seconds; and others may
have come before. So this is for a backend that does not answer."""


class ConstraintTickets:
    """Of one Http worker."""

    def __init__(self, worker: int, send: Callable[[PrepareConstraint], None], first: int) -> None:
        """send: to the Model Backend of rank 0; first: above every ticket of a former life of this worker."""
        self._worker = worker
        self._tickets: Tickets[PrepareConstraint, None] = Tickets(send, first)

    async def prepare(self, requests: Iterable[SamplingParams], *until: asyncio.Future[Any]) -> None:
        """Returns when the matchers of all that are constrained are made; at the latest with the first of `until`, or when patience
        ends. Their constraints have been checked."""
        constraints = {constraint_of(params) for params in requests if params.constrained}
        if not constraints:
            return
        preparing = asyncio.create_task(self._prepare_all(constraints))
        try:
            await asyncio.wait(
                [preparing, *until], timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            preparing.cancel()

    async def _prepare_all(self, constraints: Iterable[Constraint]) -> None:
        await asyncio.gather(*map(self._prepare, constraints))

    async def _prepare(self, constraint: Constraint) -> None:
        try:
            grammar = await asyncio.get_running_loop().run_in_executor(
                check_threads(), grammar_of, constraint
            )
        except Exception:  # the backend will come to the same, and end the request with the reason
            _log.debug("a constraint that was checked cannot be read", exc_info=True)
            return
        await self._tickets.ask(
            lambda ticket: PrepareConstraint(self._worker, ticket, *constraint, grammar), again=ASK_SECONDS
        )

    def on_prepared(self, message: ConstraintPrepared) -> None:
        self._tickets.answer(message.ticket, None)

    def send_again(self) -> None:
        """To a backend that may be another one."""
        self._tickets.send_again()

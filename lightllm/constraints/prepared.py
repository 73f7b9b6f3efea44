"""Automata for requests that are to come, made in turn while others compute: no round waits for one.

asked -> waiting -> being made -> made -> taken by its request --others asked too, and it is no longer kept--> being made
            |                       '--nobody comes for it for `_KEPT_SECONDS`--> dropped
            '--nobody asks for it any more for `_ASKED_SECONDS`----------------> dropped
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from lightllm.constraints.grammars import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher

_MOST = 64
"""Being made, or made for requests that have no rows yet: of schemas of 64 KiB about 3 MB each. Others wait until some are taken."""
_KEPT_SECONDS = 300.0
"""One whose request has not come by then ended before, or was refused."""
_ASKED_SECONDS = 30.0
"""Who waits asks more often, see `httpserver.constraint_tickets`."""


class _Started(NamedTuple):
    done: Future[LLMatcher]
    grammar: str
    since: float
    requests: int
    """That asked while it was here."""


class Taken(NamedTuple):
    done: Future[LLMatcher]
    grammar: str
    others: int
    """Requests that asked for it, and have not come."""


class _Waiting(NamedTuple):
    done: Future[LLMatcher]
    grammar: str
    asked: float


class Prepared:
    """Not safe to use from several threads at once."""

    def __init__(
        self,
        make: Callable[[Constraint, str], Future[LLMatcher]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """make: has the automaton of a constraint made, of its `grammar_of`."""
        self._make, self._clock = make, clock
        self._started: OrderedDict[Constraint, _Started] = OrderedDict()
        self._waiting: OrderedDict[Constraint, _Waiting] = OrderedDict()

    def ask(self, constraint: Constraint, grammar: str) -> Future[LLMatcher]:
        """Done when it is there. Cancelled when it is no longer waited for."""
        started = self._started.get(constraint)
        if started is not None:
            self._started[constraint] = started._replace(requests=started.requests + 1)
            return started.done
        before = self._waiting.get(constraint)
        done = Future() if before is None else before.done
        self._waiting[constraint] = _Waiting(done, grammar, self._clock())  # its place is the one that it had
        self._start()
        return done

    def make_again(self, constraint: Constraint, grammar: str, requests: int) -> None:
        """For requests that were told that it is there. They are on their way, so it is its turn at once."""
        if constraint not in self._started:
            self._begin(constraint, _Waiting(Future(), grammar, self._clock()), requests)

    def take(self, constraint: Constraint) -> Taken | None:
        """For the request that has come; None: nobody asked for it."""
        found = self._started.pop(constraint, None)
        waited = self._waiting.pop(constraint, None)
        if waited is not None:  # its request did not wait for its turn
            found = self._begin(constraint, waited)
            del self._started[constraint]
        self._start()
        return None if found is None else Taken(found.done, found.grammar, found.requests - 1)

    @property
    def waits_for_requests(self) -> int:
        """Automata that have not been taken."""
        return len(self._started)

    def _start(self) -> None:
        now = self._clock()
        while self._started and now - next(iter(self._started.values())).since > _KEPT_SECONDS:
            self._started.popitem(last=False)
        while self._waiting and len(self._started) < _MOST:
            constraint, waiting = self._waiting.popitem(last=False)
            if now - waiting.asked > _ASKED_SECONDS:
                waiting.done.cancel()
            else:
                self._begin(constraint, waiting)

    def _begin(self, constraint: Constraint, waiting: _Waiting, requests: int = 1) -> _Started:
        done = waiting.done
        self._started[constraint] = started = _Started(done, waiting.grammar, self._clock(), requests)
        done.set_running_or_notify_cancel()

        def hand_on(made: Future[LLMatcher]) -> None:
            error = made.exception()
            if error is None:
                done.set_result(made.result())
            else:
                done.set_exception(error)

        self._make(constraint, waiting.grammar).add_done_callback(hand_on)
        return started

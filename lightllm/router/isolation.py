"""Which request makes rounds fail: it ends alone, and not all that were in the same rounds.

Most of what is wrong with one request is an error of its row (`RoundResult.errors`). This is for the rest: when a round has
failed several times, its requests run in halves, the older half first, in rounds of their own. A half whose round succeeds
is cleared; one that fails is halved again, down to the request that fails alone.

    failed {1 2 3 4}  ->  {1 2} succeeds  ->  {3 4} fails  ->  {3} succeeds  ->  {4} fails, and ends
"""

from __future__ import annotations

from collections.abc import Collection

from lightllm.router.request import Request, State

MAX_ENDED = 8
"""Requests that failed one by one with no success between them: then it is not they, and all suspects end."""


class Isolation:
    """A stack of groups of suspects; the last one is tried next. Empty almost always."""

    def __init__(self) -> None:
        self._groups: list[list[Request]] = []
        self._ended = 0

    def __bool__(self) -> bool:
        """Whether there are suspects, which run in rounds of their own until there are none."""
        return bool(self._groups)

    def next_group(self) -> list[Request]:
        """What runs in the next round; empty, and with it the suspicion, if all suspects have ended or paused meanwhile."""
        while self._groups:
            self._groups[-1] = [r for r in self._groups[-1] if r.state is State.PREFILLING]
            if self._groups[-1]:
                return self._groups[-1]
            self._groups.pop()
        return []

    def failed(self, requests: Collection[Request]) -> list[Request]:
        """The round of these has failed; which have to end."""
        if not self._groups:
            self._ended = 0
        self._clear(requests)
        suspects = sorted(requests, key=lambda request: request.serial)
        if len(suspects) > 1:
            half = (len(suspects) + 1) // 2
            self._groups += [suspects[half:], suspects[:half]]
            return []
        self._ended += len(suspects)
        if self._ended >= MAX_ENDED:
            suspects += [request for group in self._groups for request in group]
            self._groups.clear()
        return suspects

    def succeeded(self, requests: Collection[Request]) -> None:
        """The round of these was computed."""
        self._ended = 0
        self._clear(requests)

    def _clear(self, requests: Collection[Request]) -> None:
        groups = ([request for request in group if request not in requests] for group in self._groups)
        self._groups = [group for group in groups if group]

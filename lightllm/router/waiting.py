"""The waiting list: first come, first served; siblings enter together, paused requests return to the head."""

from __future__ import annotations

from collections import deque

from lightllm.router.request import Request, State


class WaitingList:
    """Groups of requests in the order of their arrival. `count` and `paused` are exact; requests that ended while they
    waited are skipped when their turn comes."""

    def __init__(self) -> None:
        self._groups: deque[list[Request]] = deque()
        self.count = 0
        self.paused = 0
        self._gone = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, group: list[Request]) -> None:
        if self._gone > 64 + self.count:
            self._groups = deque(living for living in map(_living, self._groups) if living)
            self._gone = 0
        self._groups.append(group)
        self.count += len(group)

    def put_back(self, request: Request) -> None:
        """A paused request: before everybody who arrived after it."""
        self.count += 1
        self.paused += 1
        place = 0
        while place < len(self._groups) and self._groups[place][0].serial < request.serial:
            place += 1
        self._groups.insert(place, [request])

    def discard(self, request: Request) -> None:
        """To be called before a waiting or paused request changes its state for another reason than its turn."""
        self.count -= 1
        self._gone += 1
        self.paused -= request.state is State.PAUSED

    def head(self) -> list[Request]:
        """The next group that must be admitted together; empty if nobody waits."""
        while self._groups:
            group = _living(self._groups[0])
            if group:
                self._groups[0] = group
                return group
            self._groups.popleft()
        return []

    def pop(self) -> None:
        """Removes the group that `head` returned."""
        for request in self._groups.popleft():
            self.count -= 1
            self.paused -= request.state is State.PAUSED


def _living(group: list[Request]) -> list[Request]:
    return [r for r in group if r.state in (State.WAITING, State.PAUSED)]

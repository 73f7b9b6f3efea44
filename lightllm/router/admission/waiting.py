"""The waiting list: which group is next. Ordered by (priority, arrival); siblings enter together, paused requests keep their place.

Lower values of `priority` come first, as in vLLM. Within one priority it is first come, first served, except that a
group that does not fit yet may be passed by others that do: at most `max_overtakes` times, and never if it is paused
or restored (its stream is being read). So no group waits for more than those ahead of it and `max_overtakes` others of its own or a
worse priority. A better priority always goes first: under a steady stream of it, a worse one waits for ever.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from lightllm.router.request import Request, State

WAITS = State.WAITING, State.PAUSED


class WaitingGroup:
    """Requests that are admitted together; it is in the list while one of them waits."""

    __slots__ = ("overtaken", "requests")

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        self.overtaken = 0
        """How many groups behind it have entered before it."""

    @property
    def asks(self) -> tuple[int, int, int]:
        """(requests, context and most outputs to come of the first one)"""
        first = self.requests[0]
        return len(self.requests), first.known_tokens, first.max_new_tokens - len(first.output_ids)

    @property
    def serial(self) -> int:
        return self.requests[0].serial

    def may_be_passed(self, max_overtakes: int) -> bool:
        first = self.requests[0]
        return self.overtaken < max_overtakes and first.state is not State.PAUSED and not first.restored

    def clean(self) -> bool:
        """Forgets those that ended while they waited; whether any is left."""
        self.requests = [request for request in self.requests if request.state in WAITS]
        return bool(self.requests)


class WaitingList:
    """`count` and `paused` are exact; requests that ended while they waited are skipped when their turn comes."""

    def __init__(self) -> None:
        self._groups: list[WaitingGroup] = []
        """In the order of their turn; empty ones among them until somebody looks at them."""
        self._siblings: dict[int, int] = {}
        """Number of a group of siblings -> how many of it wait."""
        self._loads: dict[int, tuple[int, int]] = {}
        """Priority -> (requests, their context in tokens); what siblings have in common counts once."""
        self.count = 0
        self.paused = 0
        self.context = 0
        """Of all that wait, in tokens, counted likewise."""
        self.put_back_requests = 0
        self.put_back_context = 0
        """How many have been put back so far, and their context in tokens."""

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, group: list[Request]) -> None:
        """Siblings that have just arrived."""
        if len(self._groups) > 64 + 2 * self.count:
            self._groups = [other for other in self._groups if other.clean()]
        insort(self._groups, WaitingGroup(group), key=_turn)
        for request in group:
            self._count(request, 1)

    def put_back(self, request: Request) -> None:
        """A paused request: before all of its priority that arrived after it."""
        self._count(request, 1)
        self.put_back_requests += 1
        self.put_back_context += request.known_tokens
        insort(self._groups, WaitingGroup([request]), key=_turn)

    def discard(self, request: Request) -> None:
        """To be called before a waiting or paused request changes its state for another reason than its turn."""
        self._count(request, -1)

    def ahead_of(self, priority: int) -> tuple[int, int]:
        """(requests, their context in tokens) whose turn is before that of a new one with this priority."""
        loads = [load for other, load in self._loads.items() if other <= priority]
        return sum(count for count, _ in loads), sum(tokens for _, tokens in loads)

    def in_turn(self) -> Iterator[WaitingGroup]:
        """The groups, those first whose turn is first. `enter` for the one just yielded is allowed on the way."""
        groups, place = self._groups, 0
        while place < len(groups):
            group = groups[place]
            if not group.clean():
                del groups[place]
                continue
            yield group
            place += place < len(groups) and groups[place] is group

    def enter(self, group: WaitingGroup, passed: list[WaitingGroup]) -> None:
        """Removes a group whose requests get their rows now; it goes before `passed`, whose turn was earlier."""
        for other in passed:
            other.overtaken += 1
        self._groups.remove(group)
        for request in group.requests:
            self._count(request, -1)

    def _count(self, request: Request, sign: int) -> None:
        self.count += sign
        self.paused += sign * (request.state is State.PAUSED)
        tokens = len(request.output_ids)
        siblings = self._siblings.pop(request.group, 0)
        if siblings + min(sign, 0) == 0:  # the first to come, or the last to go
            tokens += request.prompt_len
        if siblings + sign:
            self._siblings[request.group] = siblings + sign
        self.context += sign * tokens
        count, context = self._loads.pop(request.priority, (0, 0))
        if count + sign:
            self._loads[request.priority] = count + sign, context + sign * tokens


def _turn(group: WaitingGroup) -> tuple[int, int]:
    first = group.requests[0]
    return first.priority, first.serial

"""When a group of processes is started again: with children that are only told about, and a clock of the test's own."""

from __future__ import annotations

import dataclasses

import pytest

from lightllm.protocol.control import Status
from lightllm.server.plan import ChildSpec
from lightllm.server.process_group import LASTING_SECONDS, PAUSES, WINDOW_SECONDS, GroupLost, ProcessGroup

SPEC = ChildSpec("router", "lightllm.router")


@dataclasses.dataclass
class ToldChild:
    spec: ChildSpec
    ready: bool = True
    running: bool = True
    failure: Status | None = None
    returncode: int | None = None
    killed: bool = False
    seconds_until: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.spec.name

    def die(self) -> None:
        self.ready, self.running, self.returncode = False, False, -9

    def how_it_ended(self) -> str:
        return "was killed by SIGKILL"

    def kill(self) -> None: ...

    def wait(self) -> None: ...

    def close(self) -> None: ...


def pause_after_death(group: ProcessGroup, now: float) -> float:
    """Until it is ready again; the child that runs ends at `now`."""
    group.children[0].die()
    assert group.supervise(now) == "ended"
    due = group.next_event
    if due > now:
        assert group.supervise(due - 0.01) is None
    assert [group.supervise(due), group.supervise(due)] == ["started", "ready"]
    return due - now


def started(limit: float = 100) -> ProcessGroup:
    return ProcessGroup([SPEC], ToldChild, limit, startup_timeout=30.0)


def test_what_does_not_last_waits_longer_each_time_and_what_has_lasted_is_started_at_once():
    group, now = started(), 1000.0
    pauses = []
    for _ in range(8):
        pauses.append(pause_after_death(group, now))
        now += pauses[-1] + LASTING_SECONDS - 0.5
    assert pauses == pytest.approx([*PAUSES, PAUSES[-1], PAUSES[-1]])
    now += 1.0
    for _ in range(5):
        assert pause_after_death(group, now) == 0.0
        now += LASTING_SECONDS
    assert pause_after_death(group, now - LASTING_SECONDS + 1.0) == PAUSES[1]


def test_one_that_is_never_ready_has_not_lasted_however_long_that_took():
    children = iter([True, False, False, False])
    group, now = (
        ProcessGroup([SPEC], lambda spec: ToldChild(spec, next(children)), 100, startup_timeout=30.0),
        1000.0,
    )
    for number in range(3):
        group.children[0].die()
        assert group.supervise(now) == "ended"
        assert group.next_event - now == PAUSES[number]
        assert group.supervise(group.next_event) == "started"
        now += 25.0


def test_restarts_within_the_window_are_counted_whether_it_lasted_or_not():
    group, now = started(limit=3), 1000.0
    for _ in range(3):
        pause_after_death(group, now)
        now += 60.0
    group.children[0].die()
    with pytest.raises(GroupLost) as lost:
        group.supervise(now)
    assert lost.value.restarts == 3
    group = started(limit=3)
    for number in range(10):
        assert pause_after_death(group, 1000.0 + number * WINDOW_SECONDS / 2) == 0.0

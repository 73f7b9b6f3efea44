"""Threads are given up where their cores are taken, and come back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from lightllm.backend.thread_share import ThreadShare, Times, thread_times


class Machine:
    """Cores of which some are taken half of the time by somebody else; time passes by rounds."""

    def __init__(self, cores: int, taken: int = 0) -> None:
        self.cores, self.taken, self.now, self.threads = cores, taken, 0.0, cores
        self._times: dict[str, tuple[int, int]] = {"helper": (0, 0)}
        self.used: list[tuple[float, int]] = []

    def use(self, threads: int) -> None:
        self.threads = threads
        self.used.append((self.now, threads))

    def times(self) -> Times:
        return dict(self._times)

    def pass_round(self, seconds: float = 0.05, busy: bool = True) -> None:
        self.now += seconds
        shared = max(0, self.threads + self.taken - self.cores)  # the scheduler gives free cores first
        for thread in range(self.threads if busy else 0):
            share = 0.5 if thread < shared else 1.0
            ran, waited = self._times.get(f"t{thread}", (0, 0))
            nanoseconds = int(seconds * 1e9)
            self._times[f"t{thread}"] = (
                ran + int(share * nanoseconds),
                waited + int((1 - share) * nanoseconds),
            )

    def run(self, share: ThreadShare, seconds: float, busy: bool = True) -> None:
        end = self.now + seconds
        while self.now < end:
            self.pass_round(busy=busy)
            share.adapt()


def share_of(machine: Machine) -> ThreadShare:
    return ThreadShare(machine.cores, machine.times, lambda: machine.now, machine.use)


def test_nothing_changes_where_nobody_takes_a_core() -> None:
    machine = Machine(4)
    machine.run(share_of(machine), 100)
    assert not machine.used


@pytest.mark.parametrize(("cores", "taken"), [(2, 1), (4, 2), (16, 1), (16, 8), (4, 4)])
def test_as_many_are_used_as_there_are_free_cores(cores: int, taken: int) -> None:
    machine = Machine(cores, taken)
    share = share_of(machine)
    machine.run(share, 30)
    best = max(1, cores - taken)
    at_best = time_at(machine, best, 0, 30)
    assert at_best > 24, machine.used
    machine.run(share, 300)
    assert time_at(machine, best, 100, 330) > 0.95 * 230, "tries must become rare"


def time_at(machine: Machine, threads: int, begin: float, end: float) -> float:
    changes = [(0.0, machine.cores), *machine.used, (end, 0)]
    return sum(
        max(0.0, min(until, end) - max(since, begin))
        for (since, used), (until, _) in zip(changes, changes[1:])
        if used == threads
    )


def test_they_come_back_when_the_cores_are_free_again() -> None:
    machine = Machine(4, 2)
    share = share_of(machine)
    machine.run(share, 10)
    machine.taken = 0
    machine.run(share, 30)
    assert share.threads == 4


def test_waiting_for_requests_says_nothing() -> None:
    machine = Machine(2, 1)
    share = share_of(machine)
    machine.run(share, 60, busy=False)
    assert not machine.used


def test_where_the_system_does_not_tell_nothing_changes() -> None:
    machine = Machine(2, 1)
    share = ThreadShare(2, dict, lambda: machine.now, machine.use)
    machine.run(share, 10)
    assert not machine.used


@pytest.mark.skipif(not thread_times(), reason="this system does not tell")
def test_a_thread_that_shares_its_core_is_seen_to_wait() -> None:
    core = min(os.sched_getaffinity(0))
    loop = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", loop, str(core)], stdout=subprocess.PIPE)
    found: list[float] = []

    def compute() -> None:
        os.sched_setaffinity(0, {core})
        name = str(threading.get_native_id())
        before, end = thread_times()[name], time.monotonic() + 0.4
        while time.monotonic() < end:
            pass
        found.append((thread_times()[name][1] - before[1]) / 1e9)

    try:
        assert other.stdout is not None
        other.stdout.readline()
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    finally:
        other.kill()
        other.wait()
    assert found[0] > 0.05

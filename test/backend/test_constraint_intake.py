"""Constraints that are prepared before their requests reach a round."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lightllm.backend.constraint_intake import ConstraintIntake
from lightllm.constraints.grammars import Constraint
from lightllm.ipc.channels import EVERY_EPOCH, PullChannel, PushChannel, make_context
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.messages import ConstraintPrepared, PrepareConstraint

SLOW, QUICK, BAD = (Constraint("regular_constraint", text) for text in ("slow", "quick", "bad"))


class Prepared:
    """What a backend is asked to prepare: `slow` until the test lets it end, all else is there."""

    def __init__(self) -> None:
        self.asked: list[tuple[Constraint, str]] = []
        self.slow: Future[Any] = Future()

    def __call__(self, constraint: Constraint, grammar: str) -> Future[Any] | None:
        self.asked.append((constraint, grammar))
        if constraint == BAD:
            raise RuntimeError("no thread can be started")
        return self.slow if constraint == SLOW else None


class HttpServers:
    """Two of them, before one backend."""

    def __init__(self, runtime: RuntimeDir) -> None:
        context = make_context()
        self.results = [
            PullChannel(context, runtime.http_results(worker), codec.to_http, EVERY_EPOCH)
            for worker in (0, 1)
        ]
        self.backend = PushChannel(context, runtime.constraint_intake, EVERY_EPOCH)

    def ask(self, worker: int, ticket: int, constraint: Constraint) -> None:
        self.backend.send(PrepareConstraint(worker, ticket, *constraint, f"grammar of {constraint.text}"))

    def answer(self, worker: int) -> Any:
        assert self.results[worker].wait(10_000)
        return self.results[worker].receive()

    def close(self) -> None:
        for channel in (*self.results, self.backend):
            channel.close()


@pytest.fixture
def prepared() -> Prepared:
    return Prepared()


@pytest.fixture
def servers(tmp_path: Path, prepared: Prepared) -> Iterator[HttpServers]:
    runtime = RuntimeDir.create(tmp_path)
    servers = HttpServers(runtime)
    intake = ConstraintIntake(runtime, 2, prepared)
    yield servers
    intake.close()
    servers.close()
    assert not any(thread.name == "constraint-intake" for thread in threading.enumerate())
    runtime.remove()


def test_one_that_takes_long_holds_up_no_other(servers: HttpServers, prepared: Prepared) -> None:
    servers.ask(0, 1, SLOW)
    servers.ask(1, 2, QUICK)
    servers.ask(0, 3, QUICK)
    assert servers.answer(1) == ConstraintPrepared(2)
    assert servers.answer(0) == ConstraintPrepared(3)
    prepared.slow.set_result(None)
    assert servers.answer(0) == ConstraintPrepared(1)
    assert prepared.asked == [(c, f"grammar of {c.text}") for c in (SLOW, QUICK, QUICK)]


def test_one_that_fails_is_answered(servers: HttpServers, prepared: Prepared) -> None:
    """Its request is told by the round that it is in."""
    servers.ask(1, 2, BAD)
    assert servers.answer(1) == ConstraintPrepared(2)
    servers.ask(0, 1, SLOW)
    prepared.slow.set_exception(ValueError("no such grammar"))
    assert servers.answer(0) == ConstraintPrepared(1)


def test_what_makes_no_sense_is_dropped(servers: HttpServers, prepared: Prepared) -> None:
    servers.backend.send_bytes(b"no message")
    servers.ask(2, 1, QUICK)
    servers.ask(-1, 2, QUICK)
    servers.ask(1, 3, QUICK)
    assert servers.answer(1) == ConstraintPrepared(3) and len(prepared.asked) == 1

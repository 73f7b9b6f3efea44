"""A request that the scheduler cannot take in is refused; the Router goes on with the others."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from support.router_device import add_request, make_limits

from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol import codec
from lightllm.protocol.messages import (
    Accepted,
    AddRequest,
    Refused,
    RoundTokens,
    WorkerStarted,
    make_request_id,
)
from lightllm.router import scheduler as scheduler_module
from lightllm.router.loop import RouterLoop
from lightllm.router.request import Request
from lightllm.router.scheduler import Scheduler


class Wire:
    """A channel without a socket: what is to be received, and what was sent."""

    def __init__(self, decoder: Any = None, messages: tuple[Any, ...] = ()) -> None:
        self.incoming = deque(codec.encode(message) for message in messages)
        self.sent: list[Any] = []
        self._decoder = decoder

    def receive_bytes(self) -> bytes | None:
        return self.incoming.popleft() if self.incoming else None

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data)

    def send(self, message: Any) -> None:
        self.sent.append(message)

    send_bytes = send

    def write(self, snapshot: Snapshot) -> None:
        pass

    def beat(self) -> None:
        pass


def test_it_is_refused_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Request):
        def __init__(self, message: Any, choice: Any, *arguments: Any) -> None:
            if choice.request_id == 3:  # the second of two siblings
                raise OverflowError("injected")
            super().__init__(message, choice, *arguments)

    monkeypatch.setattr(scheduler_module, "Request", Odd)
    scheduler = Scheduler(make_limits())
    messages: tuple[AddRequest, ...] = (
        add_request(1, [5, 6], 4), add_request([2, 3], [7, 8], 4, n=2), add_request(4, [9], 4)
    )  # fmt: skip
    intake, worker, backend, detokenizer = Wire(codec.to_router, messages), Wire(), Wire(), Wire()
    loop = RouterLoop(
        scheduler, intake, Wire(), detokenizer, [worker], [backend], Wire(), Wire(), 100, None,  # type: ignore[arg-type,list-item]
    )  # fmt: skip
    assert loop.turn()
    first, refused, last = worker.sent
    assert (first, last) == (Accepted([1]), Accepted([4]))
    assert isinstance(refused, Refused) and refused.request_ids == [2, 3] and refused.error == "BackendFailed"
    assert "injected" in caplog.text and "injected" not in refused.message
    assert sum(isinstance(message, bytes) for message in detokenizer.sent) == 2 and backend.sent
    scheduler.check_invariants()
    assert scheduler.snapshot().running == 2


def test_requests_of_an_http_server_that_is_gone_end_and_late_ones_are_dropped() -> None:
    scheduler = Scheduler(make_limits())
    old, other, new = make_request_id(0, 5), make_request_id(1, 5), make_request_id(0, 90)
    messages = (
        add_request(old, [5, 6], 4), add_request(other, [7, 8], 4), WorkerStarted(make_request_id(0, 80)),
        add_request(old + 1, [5], 4), add_request(new, [9], 4),
    )  # fmt: skip
    intake, workers, detokenizer = Wire(codec.to_router, messages), [Wire(), Wire()], Wire()
    loop = RouterLoop(
        scheduler, intake, Wire(), detokenizer, workers, [Wire()], Wire(), Wire(), 100, None,  # type: ignore[arg-type,list-item]
    )  # fmt: skip
    assert loop.turn()
    assert workers[0].sent == [Accepted([old]), Accepted([new])] and workers[1].sent == [Accepted([other])]
    assert [finish.request_id for tokens in detokenizer.sent if isinstance(tokens, RoundTokens) for finish in tokens.finished] == [old]  # fmt: skip
    assert scheduler.snapshot().running == 2

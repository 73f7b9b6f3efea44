"""What became of a request, for those who keep it: the request log and traces. Made once a request, and only where one of them
is wanted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal, Protocol

from starlette.types import Scope

from lightllm.errors import RequestError
from lightllm.http.error_middleware import REQUEST_ID
from lightllm.httpserver.record import RequestRecord

Outcome = Literal["success", "failure", "refused", "disconnected"]


@dataclasses.dataclass(frozen=True, slots=True)
class Ended:
    """Moments are Unix time; 0.0 where it did not come to that."""

    record: RequestRecord
    outcome: Outcome
    error: RequestError | None
    request_id: str
    """X-Request-Id."""
    route: str
    headers: Sequence[tuple[bytes, bytes]]
    arrived: float
    entered: float
    """It left the waiting list."""
    first_token: float
    last_token: float
    now: float

    @property
    def queue_seconds(self) -> float | None:
        return self._between(self.arrived, self.entered)

    @property
    def prefill_seconds(self) -> float | None:
        return self._between(self.entered, self.first_token)

    @property
    def decode_seconds(self) -> float | None:
        return self._between(self.first_token, self.last_token)

    @property
    def run_seconds(self) -> float | None:
        return self._between(self.entered, self.last_token)

    @property
    def first_token_seconds(self) -> float | None:
        return self._between(self.arrived, self.first_token)

    @property
    def finish_reasons(self) -> list[str]:
        """Of its answers, as far as they have ended."""
        return [choice.finish.reason for choice in self.record.choices if choice.finish is not None]

    @staticmethod
    def _between(earlier: float, later: float) -> float | None:
        return max(0.0, later - earlier) if earlier and later else None


class Watcher(Protocol):
    """Keeps what became of requests."""

    def __call__(self, ended: Ended) -> None:
        """At the end of each, in the event loop: returns at once."""

    def close(self) -> None:
        """Writes or sends what waits, for a few seconds at most."""


def ended(
    record: RequestRecord,
    outcome: Outcome,
    error: RequestError | None,
    scope: Scope,
    monotonic: float,
    wall: float,
) -> Ended:
    """monotonic, wall: now, by both clocks."""

    def moment(monotonic_moment: float) -> float:
        return wall - (monotonic - monotonic_moment) if monotonic_moment else 0.0

    return Ended(
        record, outcome, error, scope[REQUEST_ID], scope["path"], scope["headers"], moment(record.started),
        moment(record.entered), moment(record.first_token), moment(record.last_token), wall,
    )  # fmt: skip


def ended_now(record: RequestRecord, outcome: Outcome, error: RequestError | None, scope: Scope) -> Ended:
    return ended(record, outcome, error, scope, time.monotonic(), time.time())

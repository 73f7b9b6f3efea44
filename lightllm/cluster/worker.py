"""A worker as the controller sees it: what it serves, the state it is in, and what it has to do.

    READY ── a connection failed ──> SUSPECT ── beats stay away, or a probe failed ──> OUT
      ^  <────── a beat, or a probe answered ──────┴──────────────────────────────────┘
      │
      └─ drain / undrain ─> DRAINING      takes nothing new; what runs on it ends

A sign of life of a worker that an operator has drained, or that drains by its own word, leads to DRAINING.

Load is what this controller has sent and not seen the end of (`Ticket`), and what the worker's last beat told of others' requests.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping

from lightllm.cluster.breaker import Breaker
from lightllm.errors import RequestError

DECODE_TOKENS = 32
"""What one more running answer slows the others down by, in prompt tokens."""


class InvalidWorker(RequestError, code="invalid_worker"):
    """A registration, or a beat, with values that make no sense."""


class State(enum.Enum):
    READY = "ready"
    SUSPECT = "suspect"
    """Takes requests where no other worker of the model is ready."""
    OUT = "out"
    DRAINING = "draining"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a worker says about itself when it registers."""

    url: str
    """Where it is known, and where FastChat's protocol reaches it."""
    model_names: tuple[str, ...]
    server_url: str = ""
    """Where clients' requests go; empty: to `url`."""
    worker_id: str = ""
    """Of one life of the process: another id at the same URL is a worker that was started anew. Empty: it says none."""
    speed: float = 1.0
    """Relative to other workers of the model."""
    capacity: int = 0
    """Requests at once; 0: unknown."""
    kv_tokens: int = 0
    """Tokens that its KV memory holds; 0: unknown."""
    kind: str = "lightllm"
    """The API it speaks: lightllm, openai, or fastchat."""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    heartbeats: bool = True
    """Whether it sends beats; the controller asks the others."""
    multimodal: bool = False
    kv_events_port: int = 0
    """Where it publishes what its prefix cache holds, on the host of its server; 0: nowhere."""

    @property
    def api_url(self) -> str:
        return self.server_url or self.url

    def __post_init__(self) -> None:
        if not self.model_names or not all(self.model_names):
            raise InvalidWorker(f"worker {self.url} names no model", param="model_names")
        if not 0 < self.speed < 1e9:
            raise InvalidWorker(f"speed must be above 0, got {self.speed}", param="speed")
        if self.capacity < 0 or self.kv_tokens < 0:
            raise InvalidWorker("capacity and kv_tokens are 0 or more", param="capacity")
        if not 0 <= self.kv_events_port < 65535:
            raise InvalidWorker("kv_events_port is a port number below 65535", param="kv_events_port")


@dataclasses.dataclass(frozen=True)
class Report:
    """What a beat tells of a worker's load, whoever sent the requests."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    """Prompt tokens of the requests that wait."""
    kv_use: float = 0.0
    """Share of its KV memory that running requests hold, 0 to 1."""
    draining: bool = False

    @property
    def requests(self) -> int:
        return self.running + self.waiting


class Worker:
    """Public attributes are read by policies; `Registry` and `Ticket` alone change them."""

    def __init__(self, description: Description, now: float, breaker: Breaker | None = None) -> None:
        self.description = description
        self.url = description.url
        self.state = State.READY
        self.last_heard = now
        self.report = Report()
        self.breaker = breaker or Breaker()
        self.in_flight = 0
        """Requests that were sent to it and have not ended."""
        self.prefill_tokens = 0
        """Prompt tokens of those that it has to compute: not cached, and no answer has begun."""
        self.held_tokens = 0
        """Tokens that those will hold in KV memory: prompts, and outputs as estimated."""
        self.prompt_tokens = 0
        """Of all requests that it was sent."""
        self.cached_tokens = 0
        """Of these, what the policy thought that it had cached."""
        self.sent = 0
        """Requests, ever: decides between equals."""
        self.foreign = 0
        """Requests of others, as the last beat told."""

        self.pending = 0.0
        """What a new request would wait for, in prompt tokens, weighed by the worker's speed."""
        self.full = False
        """It has as many requests as it takes."""

    def count(self) -> None:
        """The numbers that `pending` and `full` depend on have changed: every request looks at these of every worker."""
        tokens = self.prefill_tokens + DECODE_TOKENS * (self.in_flight + self.foreign)
        if self.foreign:
            tokens += self.report.waiting_tokens
        self.pending = tokens / self.description.speed
        self.full = 0 < self.description.capacity <= self.requests

    @property
    def requests(self) -> int:
        return self.in_flight + self.foreign

    @property
    def queue(self) -> float:
        """Requests it has, weighed by its speed."""
        return self.requests / self.description.speed

    def heard(self, report: Report, now: float) -> None:
        self.report = report
        self.foreign = max(0, report.requests - self.in_flight)
        self.last_heard = now
        self.count()

    def __repr__(self) -> str:
        return f"Worker({self.url}, {self.state.value}, {self.in_flight} in flight)"


class Ticket:
    """One request's load on one worker, from before it is sent until it has ended, whatever the end. `close` may be called
    twice; every number that a ticket adds it takes back."""

    def __init__(
        self,
        worker: Worker,
        prefill_tokens: int,
        output_tokens: int,
        prompt_tokens: int,
        closed: Callable[[], object] = lambda: None,
    ) -> None:
        """prefill_tokens: of the prompt, those that the worker has to compute; closed: called at the end."""
        self.worker = worker
        self._prefill = max(0, prefill_tokens)
        self._held = max(0, prompt_tokens) + max(0, output_tokens)
        self._open = True
        self._closed = closed
        worker.in_flight += 1
        worker.sent += 1
        worker.prefill_tokens += self._prefill
        worker.held_tokens += self._held
        worker.count()

    def answered(self) -> None:
        """The first byte of the answer is there: the prompt is computed."""
        self.worker.prefill_tokens -= self._prefill
        self._prefill = 0
        self.worker.count()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        self.worker.in_flight -= 1
        self.worker.held_tokens -= self._held
        self.answered()
        self._closed()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

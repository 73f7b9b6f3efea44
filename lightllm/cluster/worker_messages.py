"""What workers tell controllers, as JSON: FastChat's fields, and ours beside them."""

from __future__ import annotations

from typing import Any

import msgspec

from lightllm.cluster.worker import InvalidWorker, Report


class Registration(msgspec.Struct):
    """The first four fields are FastChat's."""

    worker_name: str
    """Its URL."""
    check_heart_beat: bool = True
    worker_status: dict[str, Any] | None = None
    multimodal: bool = False
    worker_id: str = ""
    server_url: str = ""
    kind: str = "fastchat"
    capacity: int = 0
    kv_tokens: int = 0
    kv_events_port: int = 0
    labels: dict[str, str] = msgspec.field(default_factory=dict)


class Beat(msgspec.Struct):
    """The first two fields are FastChat's."""

    worker_name: str
    queue_length: int = 0
    worker_id: str = ""
    running: int | None = None
    waiting: int = 0
    waiting_tokens: int = 0
    kv_use: float = 0.0
    draining: bool = False

    def report(self) -> Report:
        if self.running is None:
            return Report(waiting=max(0, self.queue_length))
        values = (self.running, self.waiting, self.waiting_tokens)
        if min(values) < 0 or not 0.0 <= self.kv_use <= 1.0:
            raise InvalidWorker("a beat's numbers are 0 or more, and kv_use is at most 1")
        return Report(*values, self.kv_use, self.draining)

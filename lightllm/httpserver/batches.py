"""Requests of many prompts: how many of them wait in the Router at once, so that one client does not fill the waiting list.

The first prompt is accepted or refused like any other request, and the whole batch with it. The others follow: as many as
may wait at once, then one whenever another of them has started.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from lightllm.config import ServerConfig
from lightllm.httpserver.record import PromptRecord, RequestRecord

SHARE = 16
"""A batch takes at most one place of so many in the waiting list."""


class Batches:
    """Sends the prompts of requests in their order."""

    def __init__(self, config: ServerConfig, send: Callable[[PromptRecord], None]) -> None:
        self._most = max(1, min(config.running_max_req_size, config.max_waiting_requests // SHARE))
        """Choices of one request that wait at once."""
        self._send = send

    def begin(self, record: RequestRecord) -> None:
        """Sends the first prompt."""
        if record.done:  # on another server, but for the last words
            return
        record.held = collections.deque(record.prompts)
        begun = record.prompts[0].accepted
        record.to_accept = 0 if begun else min(len(record.prompts), self._together(record))
        self._send_next(record)

    def accepted(self, record: RequestRecord) -> None:
        """The first prompt is: the others follow."""
        for prompt in record.held:
            prompt.follows = True
        self.send_more(record)

    def send_more(self, record: RequestRecord) -> None:
        """Sends as many as may wait beside those that do, once the first prompt is accepted."""
        if not record.prompts[0].accepted:
            return
        record.unstarted = [prompt for prompt in record.unstarted if not prompt.started]
        while record.held and len(record.unstarted) < self._together(record):
            self._send_next(record)

    def send_all(self, record: RequestRecord) -> None:
        """What is still held too, whatever waits: it is to be ended, which happens where it is known."""
        for prompt in record.held:
            prompt.follows = True
        while record.held:
            self._send_next(record)

    def _together(self, record: RequestRecord) -> int:
        """Prompts of it that wait at once."""
        return max(1, self._most // record.prompts[0].params.n)

    def _send_next(self, record: RequestRecord) -> None:
        prompt = record.held.popleft()
        record.unstarted.append(prompt)
        self._send(prompt)

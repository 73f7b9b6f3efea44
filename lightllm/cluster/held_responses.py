"""Which worker holds a response of `/v1/responses`: that one alone can read, delete or go on with it.

    answer to POST /v1/responses ── its id, as it passes ──> (worker, caller)
    /v1/responses/ID, previous_response_id ── known ──> that worker
                                           └─ unknown ──> all are asked; the one that has it is remembered

Workers tell callers apart by their keys. Behind a controller with keys of its own they see one key for all callers, so nobody
is asked there: what this controller does not know as a caller's own is not found.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence

import aiohttp

from lightllm.cluster.dispatcher import NoWorker
from lightllm.cluster.registry import Registry
from lightllm.cluster.upstream import FAILURES, Upstream
from lightllm.cluster.worker import State, Worker
from lightllm.errors import UnknownResponse

PREFIX = "/v1/responses/"
_ID = re.compile(rb'"id"\s*:\s*"(resp_[A-Za-z0-9_-]{1,128})"')
_ANY_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What may be part of a path: no slashes, no dots."""
_READ = 1 << 16
"""Bytes of an answer that are looked through for its id."""
_ASK_SECONDS = 3.0
_SEARCHES = 4
"""At a time."""
_RETRY_SECONDS = 2


@dataclasses.dataclass
class _Held:
    url: str
    owner: str
    used: float


class HeldResponses:
    def __init__(
        self,
        registry: Registry,
        upstream: Upstream,
        clock: Callable[[], float],
        seconds: float,
        most: int,
        asks: bool,
    ) -> None:
        """seconds: after its last use that a response is remembered; most: responses; asks: workers about those that are not
        known."""
        self._registry = registry
        self._upstream = upstream
        self._now = clock
        self._seconds = seconds
        self._most = most
        self._asks = asks
        self._searches = asyncio.Semaphore(_SEARCHES)
        self._known: OrderedDict[str, _Held] = OrderedDict()
        """The longest unused first."""

    def __len__(self) -> int:
        return len(self._known)

    def watch(self, worker: Worker, owner: str) -> Callable[[bytes], None]:
        """To be shown the parts of an answer of `/v1/responses`, before the client gets them."""
        seen = b""
        looking = True

        def look(part: bytes) -> None:
            nonlocal seen, looking
            if not looking:
                return
            seen += part[:_READ]
            found = _ID.search(seen)
            if found is not None:
                self.remember(found[1].decode(), worker, owner)
            looking = found is None and len(seen) < _READ

        return look

    def remember(self, response_id: str, worker: Worker, owner: str) -> None:
        now = self._now()
        self._known[response_id] = _Held(worker.url, owner, now)
        self._known.move_to_end(response_id)
        while len(self._known) > self._most or next(iter(self._known.values())).used < now - self._seconds:
            self._known.popitem(last=False)

    def forget(self, response_id: str) -> None:
        self._known.pop(response_id, None)

    def is_of(self, response_id: str, owner: str) -> bool:
        """Whether it is known as a response of this caller."""
        held = self._known.get(response_id)
        return held is not None and held.owner == owner

    async def worker_of(self, response_id: str, owner: str, headers: Sequence[tuple[bytes, bytes]]) -> Worker:
        """headers: of the request that names it. Raises `UnknownResponse`, or `NoWorker` if the worker that holds it, or might, is
        away."""
        if not _ANY_ID.fullmatch(response_id):
            raise _unknown(response_id)
        held = self._known.get(response_id)
        now = self._now()
        if held is not None and held.owner == owner and held.used >= now - self._seconds:
            held.used = now
            self._known.move_to_end(response_id)
            worker = next((worker for worker in self._registry if worker.url == held.url), None)
            if worker is not None:
                if worker.state is State.OUT:
                    raise _away(response_id)
                return worker
        elif not self._asks:
            raise _unknown(response_id)
        found = await self._search(response_id, headers)
        self.remember(response_id, found, owner)
        return found

    async def _search(self, response_id: str, headers: Sequence[tuple[bytes, bytes]]) -> Worker:
        workers = [worker for worker in self._registry if worker.description.kind != "fastchat"]
        async with self._searches:
            answers = await asyncio.gather(*(self._has(worker, response_id, headers) for worker in workers))
        for worker, has in zip(workers, answers):
            if has:
                return worker
        if None in answers:
            raise _away(response_id)
        raise _unknown(response_id)

    async def _has(
        self, worker: Worker, response_id: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> bool | None:
        """None: it does not answer."""
        if worker.state is State.OUT:
            return None
        url = worker.description.api_url + PREFIX + response_id
        timeout = aiohttp.ClientTimeout(total=_ASK_SECONDS)
        try:
            asked = self._upstream.headers(headers, "controller")
            async with self._upstream.session.get(url, headers=asked, timeout=timeout) as response:
                return None if response.status >= 500 else response.status == 200
        except FAILURES:
            return None


def _unknown(response_id: str) -> UnknownResponse:
    return UnknownResponse(f"Response with id {response_id[:80]!r} not found.")


def _away(response_id: str) -> NoWorker:
    return NoWorker(
        f"a worker that holds the response {response_id[:80]!r}, or might, does not answer",
        retry_after=_RETRY_SECONDS,
    )

"""The controller's own questions to workers: are you there, and what do you serve."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

import aiohttp

from lightllm.cluster.registry import Registry
from lightllm.cluster.upstream import FAILURES, Upstream
from lightllm.cluster.worker import Description, Report, State, Worker
from lightllm.errors import RequestError

_log = logging.getLogger(__name__)
PROBE_SECONDS = 3.0
"""Within which a worker must answer."""
INTERVAL = 1.0
_STEADY_INTERVAL = 5.0
"""Between two probes of a worker that is well and sends no beats."""


class Prober:
    def __init__(self, registry: Registry, upstream: Upstream, capacity: int = 0) -> None:
        """capacity: requests at once of workers that do not say how many; 0: any number."""
        self._capacity = capacity
        self._registry = registry
        self._upstream = upstream
        self._asking: set[str] = set()
        self._next: dict[str, float] = {}

    async def run(self, urls: list[str]) -> None:
        """For ever. urls: servers that do not register themselves; each is asked until it answers."""
        unknown = set(urls)
        clock = asyncio.get_running_loop().time
        tasks: set[asyncio.Task[None]] = set()

        def start(coroutine: Any, url: str) -> None:
            self._asking.add(url)
            task = asyncio.ensure_future(coroutine)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _: self._asking.discard(url))

        while True:
            known = {worker.url for worker in self._registry}
            for url in unknown - known - self._asking:
                start(self._discover(url, clock()), url)
            for worker in self._registry.expire(clock()):
                well = worker.state in (State.READY, State.DRAINING)
                if worker.url not in self._asking and not (
                    well and clock() < self._next.get(worker.url, 0.0)
                ):
                    self._next[worker.url] = clock() + _STEADY_INTERVAL
                    start(self.probe(worker), worker.url)
            await asyncio.sleep(INTERVAL)

    async def probe(self, worker: Worker) -> bool:
        """Asks one worker for a sign of life."""
        try:
            if worker.description.kind == "fastchat":
                status = await self.fastchat_status(worker.url)
                worker.heard(
                    Report(waiting=int(status.get("queue_length", 0))), asyncio.get_running_loop().time()
                )
            else:
                await self._healthy(worker.description.api_url)
        except (*FAILURES, ValueError):
            answered = False
        else:
            answered = True
        self._registry.probed(worker, answered, asyncio.get_running_loop().time())
        return answered

    async def refresh(self) -> None:
        """Asks all at the same time, and removes nobody."""
        await asyncio.gather(*(self.probe(worker) for worker in self._registry))

    async def fastchat_status(self, url: str) -> dict[str, Any]:
        """Model names, speed and queue of a worker that speaks FastChat's protocol. Raises one of `FAILURES`, or ValueError."""
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        async with self._upstream.session.post(url + "/worker_get_status", timeout=timeout) as response:
            response.raise_for_status()
            status = await response.json(content_type=None)
        if not isinstance(status, dict):
            raise ValueError("the status is no object")
        return status

    async def _healthy(self, url: str) -> None:
        timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
        headers = dict(self._upstream.headers((), "controller"))
        async with self._upstream.session.get(url + "/health", headers=headers, timeout=timeout) as response:
            # an API that has no such route is there, too
            if response.status >= 500:
                raise aiohttp.ClientPayloadError(f"/health answered {response.status}")

    async def _discover(self, url: str, now: float) -> None:
        try:
            await self._healthy(url)
            description = await describe_server(self._upstream, url)
        except (*FAILURES, ValueError) as error:
            _log.debug("%s does not say what it serves yet: %s", url, error)
            return
        try:
            described = dataclasses.replace(description, heartbeats=False, capacity=self._capacity)
            self._registry.register(described, now)
        except RequestError as error:
            _log.warning("%s: %s", url, error)


async def describe_server(upstream: Upstream, url: str) -> Description:
    """What a server with OpenAI's API says about itself, and a server of ours about its KV memory. Raises one of `FAILURES`, or
    ValueError."""
    listing = await upstream.get_json(url, "/v1/models", PROBE_SECONDS)
    entries = listing.get("data") if isinstance(listing, dict) else None
    if not isinstance(entries, list):
        raise ValueError("/v1/models gave no list")
    names = tuple(str(entry["id"]) for entry in entries if isinstance(entry, dict) and entry.get("id"))
    if not names:
        raise ValueError("/v1/models names no model")
    kv_tokens, kind, events = 0, "openai", 0
    try:
        info = await upstream.get_json(url, "/get_server_info", PROBE_SECONDS)
        if isinstance(info, dict):
            kind = "lightllm"
            kv_tokens = int(info.get("max_total_token_num") or 0)
            events = events_port(info)
    except (*FAILURES, ValueError, TypeError):
        pass
    return Description(url, names, kind=kind, kv_tokens=max(0, kv_tokens), kv_events_port=events)


def events_port(server_info: dict[str, Any]) -> int:
    """Of `/get_server_info`: where the server publishes its cache events; 0: nowhere. Raises ValueError."""
    endpoint = str(server_info.get("kv_events") or "")
    return int(endpoint.rpartition(":")[2]) if endpoint else 0

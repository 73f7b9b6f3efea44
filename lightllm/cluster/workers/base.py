"""What every worker has, whatever answers behind it: registration, beats, a bound on what runs, and FastChat's worker routes.

A subclass answers: `generate_stream_gate` yields FastChat's chunks, each with the whole text so far; the rest has defaults.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

from lightllm.cluster.agent import Above, Agent
from lightllm.cluster.fastchat_protocol import WorkerError
from lightllm.cluster.worker_messages import Beat, Registration
from lightllm.cluster.workers.config import WorkerConfig

_log = logging.getLogger(__name__)


class BaseModelWorker(abc.ABC):
    """To be made in the event loop; `start` registers, `close` says goodbye."""

    kind = "fastchat"
    """The API at `server_url`."""

    def __init__(self, config: WorkerConfig, url: str, model_names: list[str]) -> None:
        """url: where the controllers reach it."""
        self.config = config
        self.url = url
        self.model_names = model_names
        self.worker_id = secrets.token_hex(4)
        self.server_url = ""
        """Where clients' own APIs are answered; "": nowhere."""
        self.multimodal = False
        self._room = asyncio.Semaphore(config.limit_worker_concurrency)
        self._running = 0
        self._waiting = 0
        self._draining = False
        self._agent: Agent | None = None

    # -- to the controllers

    def start(self, secret: bytes) -> None:
        if self.config.no_register:
            return
        controllers = self.config.controller_address or ["http://127.0.0.1:21001"]
        above = Above(controllers, secret, self.config.controller_api_key)
        self._agent = Agent(above, self.registration, self.beat)

    async def close(self) -> None:
        self._draining = True
        if self._agent is not None:
            await self._agent.close()

    async def registration(self) -> Registration:
        return Registration(
            worker_name=self.url,
            worker_status=self.status(),
            multimodal=self.multimodal,
            worker_id=self.worker_id,
            server_url=self.server_url,
            kind=self.kind,
            capacity=self.config.limit_worker_concurrency,
            kv_tokens=await self.kv_tokens(),
            kv_events_port=await self.kv_events_port(),
            labels=dict(label.split("=", 1) for label in self.config.labels or ()),
        )

    async def beat(self) -> Beat:
        return Beat(
            self.url, self.queue_length, self.worker_id, self._running, self._waiting, draining=self._draining
        )

    @property
    def queue_length(self) -> int:
        return self._running + self._waiting

    def status(self) -> dict[str, Any]:
        return {
            "model_names": self.model_names,
            "speed": self.config.speed,
            "queue_length": self.queue_length,
        }

    async def kv_tokens(self) -> int:
        """Tokens that the KV memory behind it holds; 0: unknown."""
        return 0

    async def kv_events_port(self) -> int:
        """Where the server behind it publishes its cache events; 0: nowhere."""
        return 0

    # -- what runs

    @contextlib.asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """One of `limit_worker_concurrency` places, given back whatever happens."""
        self._waiting += 1
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._room.release()

    # -- FastChat's gates

    @abc.abstractmethod
    def generate_stream_gate(self, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Chunks: `text` (all of it so far), `error_code` 0, `usage`, `finish_reason`. Raises `WorkerError`."""

    async def generate_gate(self, params: dict[str, Any]) -> dict[str, Any]:
        """The last chunk. Raises `WorkerError`."""
        last: dict[str, Any] = {}
        async for chunk in self.generate_stream_gate(params):
            last = chunk
        return last

    async def get_embeddings(self, params: dict[str, Any]) -> dict[str, Any]:
        """`embedding`: one vector a text of `input`; `token_num`. Raises `WorkerError`."""
        raise WorkerError("this worker has no embeddings")

    async def count_token(self, params: dict[str, Any]) -> dict[str, Any]:
        """`count`: of the tokens of `prompt`. Raises `WorkerError`."""
        raise WorkerError("this worker cannot count tokens")

    def get_conv_template(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The fields of FastChat's `Conversation`."""
        from lightllm.cluster.workers.conversations import CONVERSATIONS

        return CONVERSATIONS[self.config.conv_template or "chatml"]

    async def model_details(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"context_length": self.config.context_length}

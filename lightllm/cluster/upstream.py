"""Connections to workers: one pool for all, and what of a request and its answer goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp

from lightllm.cluster.fastchat_bridge import Translated
from lightllm.cluster.paths import FASTCHAT_PATHS
from lightllm.cluster.worker import Worker

_HOP_BY_HOP = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"transfer-encoding",
        b"upgrade", b"host", b"content-length", b"expect", b"accept-encoding",
    }
)  # fmt: skip
"""Of one connection each (RFC 9110, 7.6.1), or made anew."""
_KEYS = frozenset({b"authorization", b"x-api-key", b"api-key"})
_OWN = frozenset(
    {
        "date",
        "server",
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "x-request-id",
        "request-id",
    }
)
"""Of an answer: the controller says them itself."""
FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a connection can end with."""


class Upstream:
    """To be made and closed in the event loop."""

    def __init__(self, connect_timeout: float, worker_key: str | None, pass_keys: bool) -> None:
        """worker_key: that workers are shown; pass_keys: the client's goes to them, where there is no worker_key."""
        self._worker_key = worker_key
        self._pass_keys = pass_keys
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 16,
        )

    async def close(self) -> None:
        await self.session.close()

    def headers(self, given: Iterable[tuple[bytes, bytes]], request_id: str) -> list[tuple[str, str]]:
        """For a worker, of what a client sent."""
        left_out = _HOP_BY_HOP if self._pass_keys and not self._worker_key else _HOP_BY_HOP | _KEYS
        kept = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in given
            if name not in left_out and name != b"x-request-id"
        ]
        if self._worker_key:
            kept.append(("authorization", f"Bearer {self._worker_key}"))
        return [*kept, ("x-request-id", request_id), ("accept-encoding", "identity")]

    async def get_json(self, worker_url: str, path: str, seconds: float) -> object:
        """Raises one of `FAILURES`, or ValueError for an answer that is no JSON."""
        headers = dict(self.headers((), "controller"))
        timeout = aiohttp.ClientTimeout(total=seconds)
        async with self.session.get(worker_url + path, headers=headers, timeout=timeout) as response:
            response.raise_for_status()
            return await response.json(content_type=None)


def answer_headers(response: aiohttp.ClientResponse | Translated) -> list[tuple[bytes, bytes]]:
    """For the client, of what a worker sent."""
    return [
        (name.lower().encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in response.headers.items()
        if name.lower() not in _OWN
    ]


def url_of(worker: Worker, path: str, query: bytes = b"") -> str:
    base = worker.url if path in FASTCHAT_PATHS else worker.description.api_url
    return base + path + (f"?{query.decode('latin-1')}" if query else "")

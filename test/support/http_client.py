"""One HTTP client that many threads of a test may share.

httpx's own pool looks at a connection without a lock while another thread begins to use it, takes it for an idle or
a broken one, and closes it: the request ends with "Bad file descriptor". Here each thread has a pool of its own.
"""

from __future__ import annotations

import threading
from typing import Any

import httpx


class _PoolOfEachThread(httpx.BaseTransport):
    def __init__(self) -> None:
        self._own = threading.local()
        self._all: list[httpx.HTTPTransport] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pool = getattr(self._own, "pool", None)
        if pool is None:
            pool = self._own.pool = httpx.HTTPTransport(verify=False, trust_env=False)
            self._all.append(pool)
        return pool.handle_request(request)

    def close(self) -> None:
        for pool in self._all:
            pool.close()


def http_client(url: str, timeout: float = 30, **options: Any) -> httpx.Client:
    """A client of the server at `url`, for one thread or many; `timeout` is in seconds."""
    return httpx.Client(base_url=url, timeout=timeout, transport=_PoolOfEachThread(), **options)

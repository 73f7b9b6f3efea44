"""A worker did not take a request: what the client gets if nobody else takes it."""

from __future__ import annotations

import aiohttp
import msgspec
from starlette.responses import Response
from starlette.types import Send

from lightllm.cluster.fastchat_bridge import Translated
from lightllm.cluster.fastchat_protocol import error_chunk
from lightllm.cluster.upstream import FAILURES, answer_headers
from lightllm.errors import RequestError

STATUSES = frozenset({429, 502, 503, 504})
"""Another worker may take the request: this one had no room, or was not there."""
_MOST = 1 << 16
"""Bytes of such an answer that are read."""


class BrokenOff(Exception):
    """The worker's connection ended before its answer."""


class WorkerLost(RequestError, status=502, code="worker_lost", kind="server_error"):
    """Every worker that was tried could not be reached, or broke off."""


class Refused:
    """With an answer of its own, which says why, and when to come again."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self._status, self._headers, self._body = status, headers, body

    @classmethod
    async def read(cls, response: aiohttp.ClientResponse | Translated) -> Refused:
        """Raises `BrokenOff`."""
        try:
            body = await response.content.read(_MOST)
        except FAILURES as error:
            raise BrokenOff from error
        return cls(response.status, answer_headers(response), body)

    async def tell(self, send: Send) -> None:
        headers = [*self._headers, (b"content-length", str(len(self._body)).encode())]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": self._body, "more_body": False})


class Unreached:
    """Without a word."""

    async def tell(self, send: Send) -> None:
        raise WorkerLost(
            "no worker could be reached, or those that were broke off before they had answered", retry_after=2
        )


def fastchat_error(error: RequestError, streamed: bool) -> Response:
    """In the form of FastChat's workers, whose clients look at nothing else."""
    body = msgspec.json.encode(error_chunk(error))
    if streamed:
        return Response(body + b"\0", media_type="application/octet-stream")
    return Response(body, media_type="application/json")

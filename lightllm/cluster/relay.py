"""A worker's answer on its way to the client: each part that the worker sent is one that the client gets."""

from __future__ import annotations

import aiohttp
from starlette.types import Send

from lightllm.cluster.refusal import BrokenOff
from lightllm.cluster.upstream import FAILURES, answer_headers
from lightllm.errors import BackendFailed
from lightllm.http.error_responses import error_body, is_anthropic

_FASTCHAT_FAILED = b'{"text": "the worker broke off its answer", "error_code": 50001}\0'


class Relay:
    """One answer. Nothing has been sent to the client until `pass_on`."""

    def __init__(self, response: aiohttp.ClientResponse, path: str) -> None:
        self._response = response
        self._path = path
        self._parts = response.content.iter_chunks()
        self._first: bytes | None = None

    async def begin(self) -> None:
        """Waits for the first part. Raises `BrokenOff`."""
        self._first = await self._next()

    async def pass_on(self, send: Send) -> bool:
        """To the end of the answer; False: the worker broke it off, and the client was told so in the answer's own form."""
        response = self._response
        headers = answer_headers(response)
        if response.content_length is not None:
            headers.append((b"content-length", str(response.content_length).encode()))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        part, whole = self._first, True
        try:
            while part is not None:
                await send({"type": "http.response.body", "body": part, "more_body": True})
                part = await self._next()
        except BrokenOff:
            whole = False
            failure = self._failure()
            if failure is None:
                raise BackendFailed("the worker broke off its answer") from None
            await send({"type": "http.response.body", "body": failure, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return whole

    async def _next(self) -> bytes | None:
        """The next part that is not empty; None at the end."""
        try:
            async for part, _ in self._parts:
                if part:
                    return part
        except FAILURES as error:
            raise BrokenOff from error
        return None

    def _failure(self) -> bytes | None:
        """An error in the form of a stream; None: this answer has no place for one, and is cut off."""
        kind = self._response.content_type
        error = error_body(self._path, BackendFailed("the worker broke off its answer"))
        if kind == "text/event-stream":
            return (b"event: error\n" if is_anthropic(self._path) else b"") + b"data: %b\n\n" % error
        if kind == "application/x-ndjson":
            return error + b"\n"
        if self._path == "/worker_generate_stream":
            return _FASTCHAT_FAILED
        return None

"""An answer on its way to the client: each part that a worker sends is one that the client gets. What the worker tells beside
them (`protocol/resume.py`) is kept, so that another worker can go on where this one broke off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import aiohttp
import msgspec
from starlette.types import Send

from lightllm.cluster.fastchat_bridge import Translated
from lightllm.cluster.refusal import BrokenOff
from lightllm.cluster.upstream import FAILURES, answer_headers
from lightllm.errors import BackendFailed
from lightllm.http.error_responses import error_body, is_anthropic
from lightllm.protocol.kv_events import PROMPT_TELLS
from lightllm.protocol.resume import TELLS, Identity, News, Resumption, unmark

_FASTCHAT_FAILED = b'{"text": "the worker broke off its answer", "error_code": 50001}\0'
_FOR_CONTROLLERS = frozenset({TELLS.encode(), PROMPT_TELLS.encode()})


class Relay:
    """One client's answer, from whatever workers it comes."""

    def __init__(self, path: str, body: bytes, send: Send) -> None:
        self.watches: dict[str, Callable[[bytes], object]] = {}
        """By what they look for: shown each part before the client gets it."""
        self._path = path
        self._body = body
        self._send = send
        self._kind = ""
        """Media type of the answer."""
        self._counted = False
        """Its length was announced."""
        self._identity: Identity | None = None
        self._choices: dict[int, News] = {}
        self.started = False
        """The client has the head of the answer."""

    async def begin(self, response: aiohttp.ClientResponse | Translated) -> Passage:
        """Waits for the first part of a worker's answer. Raises `BrokenOff`."""
        passage = Passage(self, response)
        await passage.begin()
        return passage

    def resumption(self) -> bytes | None:
        """The body of a request that has the rest of the answer made on another worker; None: it cannot."""
        if self._identity is None:
            return None
        choices = [*self._choices.values()]
        return msgspec.json.encode(Resumption(self._path, msgspec.Raw(self._body), self._identity, choices))

    async def fail(self) -> None:
        """Nobody goes on with it: the client is told so in the answer's own form, or is cut off."""
        failure = self._failure()
        if failure is None:
            raise BackendFailed("the worker broke off its answer")
        await self.part(failure)
        await self.end()

    async def start(self, response: aiohttp.ClientResponse | Translated) -> None:
        self.started = True
        self._kind = response.content_type
        headers = [(name, value) for name, value in answer_headers(response) if name not in _FOR_CONTROLLERS]
        if response.content_length is not None:
            self._counted = True
            headers.append((b"content-length", str(response.content_length).encode()))
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})

    async def part(self, part: bytes) -> None:
        for watch in self.watches.values():
            watch(part)
        await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def identify(self, identity: Identity) -> None:
        self._identity = identity

    def learn(self, news: list[News]) -> None:
        """What has been passed on."""
        for each in news:
            known = self._choices.setdefault(each.choice, each)
            if known is not each:
                known.add(each)

    def _failure(self) -> bytes | None:
        error = error_body(self._path, BackendFailed("the worker broke off its answer"))
        if self._counted:
            return None
        if self._kind == "text/event-stream":
            return (b"event: error\n" if is_anthropic(self._path) else b"") + b"data: %b\n\n" % error
        if self._kind == "application/x-ndjson":
            return error + b"\n"
        if self._path == "/worker_generate_stream":
            return _FASTCHAT_FAILED
        return None


class Passage:
    """The part of an answer that comes from one worker."""

    def __init__(self, relay: Relay, response: aiohttp.ClientResponse | Translated) -> None:
        self._relay = relay
        self._response = response
        self._chunks = response.content.iter_chunks()
        self._first: bytes | None = None
        told = response.headers.get(TELLS) if response.status == 200 else None
        self._marked = told is not None
        if told is not None:
            relay.identify(msgspec.json.decode(told, type=Identity))

    async def begin(self) -> None:
        self._first = await self._next()

    async def pass_on(self) -> None:
        """To the end of the answer. Raises `BrokenOff`; what was passed on before it is whole parts."""
        if not self._relay.started:
            await self._relay.start(self._response)
        held: list[bytes] = []
        async for part in self._parts():
            if not self._marked:
                await self._relay.part(part)
                continue
            event, news = unmark(part)
            held.append(event)
            if news is None:
                continue
            for event in held:
                await self._relay.part(event)
            held.clear()
            self._relay.learn(news)
        await self._relay.end()

    async def _parts(self) -> AsyncIterator[bytes]:
        part = self._first
        while part is not None:
            yield part
            part = await self._next()

    async def _next(self) -> bytes | None:
        """The next part that is not empty; None at the end. Marked ones are whole events, however they came."""
        whole = b""
        try:
            async for part, complete in self._chunks:
                whole += part
                if whole and (complete or not self._marked):
                    return whole
        except FAILURES as error:
            raise BrokenOff from error
        return whole or None

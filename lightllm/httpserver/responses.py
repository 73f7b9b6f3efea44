"""The ASGI response of a generation: from submission to the last byte, for whole answers and for streams.

One `send` per event, which makes it one HTTP chunk: there are clients that take a chunk for an event. One extra task per
request, which waits for the client to leave.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lightllm.errors import REQUEST_ERRORS, RequestError, ServerOverloaded
from lightllm.http.auth import caller
from lightllm.http.error_middleware import ABORT_CONNECTION, REQUEST_ID, WRITE_PARTS
from lightllm.httpserver.ended import Outcome, ended_now
from lightllm.httpserver.engine_client import EngineClient
from lightllm.httpserver.record import PromptRecord, RequestRecord
from lightllm.httpserver.rendering import LARGE_ANSWER, Renderer
from lightllm.httpserver.resuming import ResumableRenderer, go_on, is_resumable, resumption, skip_sent
from lightllm.protocol import metrics
from lightllm.protocol.kv_events import PROMPT_ASKS, PROMPT_TELLS, tell_prompt
from lightllm.protocol.resume import TELLS, Identity

WriteParts = Callable[[Callable[[], list[bytes]]], int | None]
"""`Exchange.write_parts`."""
_log = logging.getLogger(__name__)
_COUNTERS: dict[Outcome, metrics.Metric] = {
    "success": metrics.REQUEST_SUCCESS, "failure": metrics.REQUEST_FAILURE, "refused": metrics.REQUEST_FAILURE,
    "disconnected": metrics.REQUEST_DISCONNECTED,
}  # fmt: skip
EVENTS = b"text/event-stream; charset=utf-8"
SILENT_SECONDS = 15.0
"""Half of what the most impatient proxies wait."""
KEEP_ALIVE = b": keep-alive\n\n"
"""A server-sent event without data: clients take no notice of it (HTML standard, 9.2.6)."""


def respond(
    engine: EngineClient,
    request: Request,
    prompts: list[PromptRecord],
    renderer: Renderer,
    stream: bool,
    *names: str,
    ping: bytes = KEEP_ALIVE,
    silence: float | None = None,
    opening: Sequence[bytes] = (),
    media_type: bytes = EVENTS,
    identity: tuple[str, int] | None = None,
) -> Response:
    """The answer to a request. names: by which `/abort_request` knows it, besides its X-Request-Id; ping: what a stream sends
    when it has been silent for a while, in an API that has an event of its own for that; silence: how long that is, in seconds,
    where `--sse_keep_alive` does not say it, None: `SILENT_SECONDS`, 0: no stream is kept alive; opening: the events that a
    stream begins with, as soon as the request is accepted; media_type: of a stream; identity: id and time that are in its events,
    where nothing else in them would differ on another server: then the stream can go on there."""
    record = RequestRecord(prompts, (request.scope[REQUEST_ID], *names), stream, caller(request).owner)
    seconds = (engine.config.sse_keep_alive, silence, SILENT_SECONDS)
    first = next(stated for stated in seconds if stated is not None)
    begun = resumption(request) if stream else None
    if begun is not None:
        opening = ()
        for prompt in prompts:
            prompt.params = msgspec.structs.replace(prompt.params, seed=begun.identity.seed)
        record.begun = functools.partial(go_on, record, begun)
    told = None
    plain = len(prompts) == 1 and prompts[0].params.logprobs <= 0  # alternatives to tokens are not told
    if identity is not None and stream and plain and is_resumable(request):
        renderer, told = ResumableRenderer(renderer), identity
    prompt_told = any(name == PROMPT_ASKS for name, _ in request.scope["headers"])
    return _GenerationResponse(
        engine, record, renderer, _Form(ping, first, opening, media_type, told, prompt_told)
    )


class _Form(NamedTuple):
    """What `respond` says of a stream."""

    ping: bytes
    silence: float
    opening: Sequence[bytes]
    media_type: bytes
    told: tuple[str, int] | None
    """Id and time of an answer whose events say how it could go on elsewhere."""
    prompt_told: bool
    """Whether a header says of which blocks the (first) prompt is."""


class _GenerationResponse(Response):
    """Submits the record when it is called, and forgets it when it is done, however that comes about."""

    def __init__(self, engine: EngineClient, record: RequestRecord, renderer: Renderer, form: _Form) -> None:
        self.status_code = 200
        self.background = None
        self._form = form
        self._engine = engine
        self._record = record
        self._renderer = renderer
        self._failure: Exception | None = None
        """Of `_deliver`; the handler raises it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine, record = self._engine, self._record
        engine.store.add(metrics.REQUEST_COUNT)
        watcher = asyncio.get_running_loop().create_task(self._watch(receive))
        outcome: Outcome = "failure"
        try:
            engine.begin(record)
            if record.begun is not None:
                skip_sent(self._renderer, record)
            await engine.submit(record)
            await engine.accepted(record)
            if not record.disconnected:
                await (self._stream(scope, send) if record.stream else self._whole(send))
                if first_error(record) is None and record.error is None:
                    outcome = "success"
        except ServerOverloaded:
            engine.store.add(metrics.REQUEST_REFUSED)
            outcome = "refused"
            raise
        finally:
            watcher.cancel()
            engine.forget(record)
            self._observe("disconnected" if record.disconnected else outcome, scope)

    async def _watch(self, receive: Receive) -> None:
        """Waits until the client has left; the request's slots are free within a round."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self._record.disconnected = True
        self._record.held.clear()
        self._engine.abort(self._record)
        self._record.wake()

    async def _whole(self, send: Send) -> None:
        record = self._record
        while not record.done and record.error is None and not record.disconnected:
            await record.news()
        if record.disconnected:
            return
        error = record.error or first_error(record)
        if error is not None:
            raise error
        if _entries(record) > LARGE_ANSWER:
            body = await asyncio.to_thread(self._renderer.answer, record)
        else:
            body = self._renderer.answer(record)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *self._told(),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, scope: Scope, send: Send) -> None:
        record = self._record
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", self._form.media_type),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                    *self._told(),
                ],
            }
        )
        record.drop_connection = scope.get(ABORT_CONNECTION)
        keep_alive = _KeepAlive(record.wake, self._form.silence)
        if write_parts := scope.get(WRITE_PARTS):
            record.deliver = functools.partial(self._deliver, write_parts, keep_alive)
        try:
            for event in self._form.opening:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await self._send_events(send, keep_alive)
        finally:
            record.deliver = None
            keep_alive.stop()

    def _told(self) -> list[tuple[bytes, bytes]]:
        """Headers for a controller: of which blocks the prompt is, and that the stream can go on elsewhere."""
        headers = []
        if self._form.prompt_told:
            headers.append((PROMPT_TELLS.encode(), tell_prompt(self._record.prompts[0].prompt_ids)))
        if self._form.told is not None:
            seed = self._record.prompts[0].params.seed
            assert seed is not None
            headers.append((TELLS.encode(), msgspec.json.encode(Identity(*self._form.told, seed))))
        return headers

    def _deliver(self, write_parts: WriteParts, keep_alive: _KeepAlive) -> bool:
        """Sends what a stream has got while its handler waits: to wake the handler, and the way through the layers of the
        application, is half of what a token costs. False: the handler has to do it, as it does the end of every stream."""
        record = self._record
        if not record.waiting or record.done or self._renderer.preparation(record):
            return False
        try:
            written = write_parts(functools.partial(self._renderer.events, record))
        except Exception as error:
            self._failure = error
            return False
        if written:  # tokens of which a parser makes nothing yet leave the connection silent
            keep_alive.sent()
        return written is not None

    async def _send_events(self, send: Send, keep_alive: _KeepAlive) -> None:
        record, renderer = self._record, self._renderer
        interval = self._engine.config.stream_interval
        while not record.disconnected and record.error is None:
            if self._failure is not None:
                raise self._failure
            if record.done or record.wants_sending(interval):
                events = await self._events()
                if record.done:
                    error = first_error(record)
                    if error is not None:
                        events.append(renderer.error(error))
                    await _send_last(send, events + renderer.end(record))
                    return
                record.sending = True
                for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                record.sending = False
                if events:
                    keep_alive.sent()  # news may have come while the client was slow
            elif keep_alive.due:
                await send({"type": "http.response.body", "body": self._form.ping, "more_body": True})
                keep_alive.sent()
            else:
                await record.news()
        if record.error is not None:
            events = await self._events() if record.wants_sending(1) else []
            events.append(renderer.error(record.error))
            await _send_last(send, events + renderer.end(record))

    async def _events(self) -> list[bytes]:
        while prepare := self._renderer.preparation(self._record):
            await asyncio.to_thread(prepare)
        return self._renderer.events(self._record)

    def _observe(self, outcome: Outcome, scope: Scope) -> None:
        store, record = self._engine.store, self._record
        store.add(_COUNTERS[outcome])
        for choice in record.choices:
            if choice.finish is not None:
                store.add(metrics.ANSWERS_ENDED, value=choice.finish.reason)
        if record.first_token:
            self._observe_times()
        if self._engine.watchers:
            error = record.error or first_error(record)
            what = ended_now(record, outcome, error, scope)
            for watch in self._engine.watchers:
                watch(what)

    def _observe_times(self) -> None:
        store, record = self._engine.store, self._record
        if entered := record.entered:
            store.observe(metrics.QUEUE_SECONDS, max(0.0, entered - record.started))
            store.observe(metrics.PREFILL_SECONDS, max(0.0, record.first_token - entered))
            store.observe(metrics.RUN_SECONDS, max(0.0, record.last_token - entered))
        store.observe(metrics.INFERENCE_SECONDS, record.last_token - record.started)
        store.observe(metrics.CACHED_TOKENS, record.cached_tokens)
        store.observe(metrics.CACHED_RATIO, record.cached_tokens / max(1, record.prompt_tokens))
        if self._engine.config.pools:
            return
        store.observe(metrics.DECODE_SECONDS, record.last_token - record.first_token)
        store.observe(metrics.GENERATED_TOKENS, record.output_tokens)
        longest = max(len(choice.token_ids) for choice in record.choices)
        if longest > 1:
            seconds = (record.last_token - record.first_token) / (longest - 1)
            store.observe(metrics.MEAN_TOKEN_SECONDS, seconds)
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "%s: %d prompt, %d cached, %d output tokens, %.3f s", " ".join(record.names), record.prompt_tokens,
                record.cached_tokens, record.output_tokens, time.monotonic() - record.started,
            )  # fmt: skip


class _KeepAlive:
    """Notices that a stream has carried nothing for a while, and wakes its handler, which sends a comment: proxies drop connections
    that carry nothing for a minute or less. One timer a stream, which moves on only
    when it fires, so that a token costs no more than a look at the clock."""

    def __init__(self, wake: Callable[[], None], seconds: float) -> None:
        """wake: lets the stream's handler look at `due`; seconds: of silence, 0: for ever."""
        self.due = False
        """A comment should be sent."""
        self._wake = wake
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look) if seconds else None

    def sent(self) -> None:
        """Something was sent."""
        self.due = False
        self._last = self._loop.time()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        left = self._last + self._seconds - now
        if left <= 0:
            self.due = True
            self._wake()
            left = self._seconds
        self._timer = self._loop.call_later(left, self._look)


async def _send_last(send: Send, events: list[bytes]) -> None:
    """The last events of a stream."""
    *others, last = events or [b""]
    for event in others:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": last})


def _entries(record: RequestRecord) -> int:
    """About how many entries the whole answer has: tokens, alternatives with their log-probabilities, numbers of vectors."""
    return sum(choice.pooled.size for choice in record.choices if choice.pooled is not None) + sum(
        len(prompt.choices) * len(prompt.prompt_ids) * (prompt.params.prompt_logprobs + 2)
        + sum(len(choice.token_ids) for choice in prompt.choices) * (prompt.params.logprobs + 2)
        for prompt in record.prompts
    )


def first_error(record: RequestRecord) -> RequestError | None:
    """The first finish that is no answer, as an error, if there is one."""
    finish = next((choice.finish for choice in record.choices if choice.failed), None)
    if finish is None:
        return None
    error = REQUEST_ERRORS[finish.error_type]
    return error(finish.error or "the model backend could not finish the request")

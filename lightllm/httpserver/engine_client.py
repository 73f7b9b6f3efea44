"""The Http Server's side of the engine: sends requests to the Router, hands what comes back to the records.

    abort    asks the Router to end a request; its finishes come back as usual
    fail     ends a request here and now, with an error for its handler
    forget   frees a request whose last byte is sent, or whose client is gone

Runs in the event loop. No task and no allocation beyond list entries is made per token; a request's handler is woken
at most once per message, that is once per round.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import zmq

from lightllm.config import ServerConfig
from lightllm.errors import REQUEST_ERRORS, RequestError, RequestTimeout
from lightllm.http.metric_store import MetricStore
from lightllm.httpserver.batches import Batches
from lightllm.httpserver.constraint_tickets import ConstraintTickets
from lightllm.httpserver.encode_tickets import EncodeTickets
from lightllm.httpserver.flush_tickets import FlushTickets
from lightllm.httpserver.record import MAX_PENDING_TOKENS, ChoiceRecord, PromptRecord, RequestRecord
from lightllm.ipc.channels import EVERY_EPOCH, Epoch, PullChannel, PushChannel
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec, metrics
from lightllm.protocol.images import Encoded, EncoderProgress, EncoderReady
from lightllm.protocol.messages import (
    AbortNamed,
    AbortRequest,
    Accepted,
    ConstraintPrepared,
    FinishReason,
    Flushed,
    Hello,
    Refused,
    TextDeltas,
    WorkerStarted,
    make_request_id,
)

if TYPE_CHECKING:
    from lightllm.httpserver.ended import Watcher
    from lightllm.httpserver.images import Images

_log = logging.getLogger(__name__)


class EngineClient:
    """All requests of one Http worker that are not yet answered to their last byte."""

    def __init__(
        self, runtime: RuntimeDir, store: MetricStore, config: ServerConfig, worker: int = 0
    ) -> None:
        self.runtime = runtime
        self.store = store
        self.config = config
        self._worker = worker
        self._serial = time.time_ns() // 10_000  # above every serial of a former life of this worker
        self._started = WorkerStarted(make_request_id(worker, self._serial))
        self._choices: dict[int, ChoiceRecord] = {}
        self._named: dict[str, set[RequestRecord]] = {}
        self._siblings: dict[int, PushChannel] = {}
        self.watchers: list[Watcher] = []
        self.images: Images | None = None
        """Of a model that sees; set before `connect`."""
        self.ended: asyncio.Future[RequestError]
        """Done from `fail_all` on, with what every request is told; there from `connect` on."""

    def connect(self, context: zmq.Context, loop: asyncio.AbstractEventLoop) -> None:
        """Opens the sockets; to be called in the event loop's thread."""
        self._context = context
        self._loop = loop
        self.ended = loop.create_future()
        self._epoch = Epoch(self.runtime.epoch)
        self._router = PushChannel(context, self.runtime.router_intake, self._epoch)
        self._batches = Batches(self.config, lambda prompt: self._router.send(prompt.add_request()))
        self._results = PullChannel(
            context, self.runtime.http_results(self._worker), codec.to_http, self._epoch
        )
        if self.images is not None:
            self._visual = [
                PushChannel(context, self.runtime.visual_intake(rank), EVERY_EPOCH)
                for rank in range(self.config.visual_dp)
            ]
            self.images.encodes = EncodeTickets(self._worker, [channel.send for channel in self._visual])
        self._results.on_message(loop, self._receive)
        self._flushes = FlushTickets(self._worker, self._router.send, self._serial)
        self._matchers = PushChannel(context, self.runtime.constraint_intake, EVERY_EPOCH)
        self._constraints = ConstraintTickets(self._worker, self._matchers.send, self._serial)
        self._router.send(self._started)

    def close(self) -> None:
        self._loop.remove_reader(self._results.socket.getsockopt(zmq.FD))  # type: ignore[arg-type]
        self._router.close(linger_ms=100)
        self._results.close()
        self._matchers.close()
        if self.images is not None:
            for channel in self._visual:
                channel.close()
            self.images.close()
        for channel in self._siblings.values():
            channel.close(linger_ms=100)

    @property
    def active(self) -> int:
        """Choices that are not finished."""
        return len(self._choices)

    # -- requests

    def begin(self, record: RequestRecord) -> None:
        """Gives ids and seeds to a record; from here on its time runs, and its names are known."""
        record.aborted = self._loop.create_future()
        for prompt in record.prompts:
            if prompt.params.seed is None:
                prompt.params = msgspec.structs.replace(prompt.params, seed=secrets.randbits(63))
        self._serial += 1
        record.add_choices(make_request_id(self._worker, self._serial))
        self._serial += len(record.choices) - 1
        for name in record.names:
            self._named.setdefault(name, set()).add(record)
        timeouts = [p.params.timeout or self.config.request_timeout for p in record.prompts]
        if min(timeouts) > 0:
            record.timer = self._loop.call_later(min(timeouts), self._time_out, record)

    async def submit(self, record: RequestRecord) -> None:
        """Sends a record to the Router when what its constraints need is made; one that is aborted before ends unsent. Raises what
        `fail_all` was called with."""
        params = [prompt.params for prompt in record.prompts]
        await self._constraints.prepare(params, self.ended, record.aborted)
        if self.ended.done():
            raise self.ended.result()
        if record.abort_reason is not None:
            record.end_unsent(record.abort_reason)
            return
        for choice in record.choices:
            if choice.finish is None:
                self._choices[choice.request_id] = choice
        for prompt in record.prompts:
            self.store.observe(metrics.INPUT_LENGTH, len(prompt.prompt_ids))
            if not self.config.pools:
                self.store.observe(metrics.MAX_NEW_TOKENS, prompt.params.max_new_tokens)
        self._batches.begin(record)

    async def accepted(self, record: RequestRecord) -> None:
        """Waits until every prompt is accepted (or has produced something); raises the refusal."""
        while record.to_accept and record.error is None and not record.disconnected:
            await record.news()
        if record.error is not None:
            raise record.error

    def abort(self, record: RequestRecord, reason: FinishReason = "abort") -> None:
        """Asks the Router, once, to end what still runs of a request; the finishes come back as usual."""
        if record.abort_reason is None:
            record.abort_reason = reason
            record.aborted.set_result(None)
            self._batches.send_all(record)
            self._send_aborts(record, reason)

    def _time_out(self, record: RequestRecord) -> None:
        """Its client is told now, whatever the engine does. What has only to be written is not late."""
        if record.done:
            return
        self.abort(record, "timeout")
        self.fail(record, RequestTimeout("the request took longer than its time limit", param="timeout"))

    def abort_named(self, name: str, owner: str | None = None, here_only: bool = False) -> int:
        """Aborts the requests known by `name` here, or tells the other workers; returns how many were found here. With
        `owner` only those of that caller."""
        records = [record for record in self._named.get(name, ()) if owner in (None, record.owner)]
        for record in records:
            self.abort(record)
        if not records and not here_only:
            for worker in range(self.config.httpserver_workers):
                if worker != self._worker:
                    self._sibling(worker).send(AbortNamed(name, owner))
        return len(records)

    def fail(self, record: RequestRecord, error: RequestError) -> None:
        """Nothing more is wanted of this record; its handler is told why."""
        record.error = error
        record.held.clear()
        self.abort(record)
        for choice in record.choices:
            self._choices.pop(choice.request_id, None)
        record.wake()

    def fail_all(self, error: RequestError) -> None:
        """The server ends: every request that still runs, and every later one, ends with `error`."""
        if not self.ended.done():
            self.ended.set_result(error)
        for record in self._unfinished():
            self.fail(record, error)

    def restore(self) -> None:
        """A new Router, which knows no request, is sent all that is unfinished. What the one before it has said of them has
        been received, and nothing of it can follow."""
        records = self._unfinished()
        for record in records:
            held = {id(prompt) for prompt in record.held}
            for prompt in record.prompts:
                if id(prompt) not in held and any(choice.finish is None for choice in prompt.choices):
                    self._router.send(prompt.add_request())
            if record.abort_reason is not None:
                self._send_aborts(record, record.abort_reason)
        self._flushes.send_again()
        self._constraints.send_again()
        self._router.send(self._started)
        if records:
            _log.warning("the router was restarted: %d requests go on", len(records))

    async def flush_cache(self, seconds: float = 10.0) -> int:
        """Has the Router empty the prefix cache; tokens that it lost. Raises `ServerOverloaded` if it takes longer."""
        return await self._flushes.flush(seconds)

    def forget(self, record: RequestRecord) -> None:
        """The last byte is sent, or the client is gone: aborts what still runs and drops the record."""
        record.held.clear()
        self.abort(record)
        items = [image.item_id for prompt in record.prompts for image in prompt.images]
        if items and self.images is not None:
            self.images.cache.release(items)
        for choice in record.choices:
            self._choices.pop(choice.request_id, None)
        if record.timer is not None:
            record.timer.cancel()
        for name in record.names:
            records = self._named.get(name)
            if records is not None:
                records.discard(record)
                if not records:
                    del self._named[name]

    def _unfinished(self) -> list[RequestRecord]:
        """In the order in which they came."""
        return list({id(choice.request): choice.request for choice in self._choices.values()}.values())

    def _send_aborts(self, record: RequestRecord, reason: FinishReason) -> None:
        for choice in record.choices:
            if choice.request_id in self._choices:
                self._router.send(AbortRequest(request_id=choice.request_id, reason=reason))

    def _sibling(self, worker: int) -> PushChannel:
        channel = self._siblings.get(worker)
        if channel is None:
            address = self.runtime.http_results(worker)
            channel = self._siblings[worker] = PushChannel(self._context, address, EVERY_EPOCH)
        return channel

    # -- what comes back

    def _receive(self, message: msgspec.Struct) -> None:
        """One message. An error in it must not keep the following ones in the socket."""
        handler: Callable[..., None] = self._handlers[type(message)]
        try:
            handler(self, message)
        except Exception:
            _log.exception("a %s message could not be handled", type(message).__name__)

    def _on_accepted(self, message: Accepted) -> None:
        for request_id in message.request_ids:
            choice = self._choices.get(request_id)
            if choice is not None and not choice.prompt.accepted:
                self._accepted(choice.prompt, choice.request)
                choice.request.wake()

    def _accepted(self, prompt: PromptRecord, record: RequestRecord) -> None:
        prompt.accepted = True
        record.to_accept = max(0, record.to_accept - 1)
        if prompt is record.prompts[0]:
            self._batches.accepted(record)

    def _on_refused(self, message: Refused) -> None:
        for request_id in message.request_ids:
            choice = self._choices.pop(request_id, None)
            if choice is None:
                continue
            choice.request.unfinished -= 1
            if choice.request.error is None:
                kind = REQUEST_ERRORS.get(message.error, RequestError)
                self.fail(choice.request, kind(message.message, message.param, message.retry_after))

    def _on_hello(self, message: Hello) -> None:
        if message.epoch > self._epoch.number:
            self._epoch.raise_to(message.epoch)
            self.restore()

    def _on_text(self, message: TextDeltas) -> None:
        choices = self._choices
        touched: list[RequestRecord] = []
        tops = message.top
        for index, (request_id, token_id, text, logprob) in enumerate(
            zip(message.request_ids, message.token_ids, message.texts, message.logprobs, strict=True)
        ):
            choice = choices.get(request_id)
            if choice is None:
                continue
            if tops and index in tops:
                choice.top[len(choice.token_ids)] = tops[index]
            choice.token_ids.append(token_id)
            choice.texts.append(text)
            choice.logprobs.append(logprob)
            record = choice.request
            if not record.touched:
                record.touched = True
                touched.append(record)
        if touched:
            self._observe_round(touched)
        for name in ("cached_tokens", "entered", "pooled"):
            for request_id, value in getattr(message, name).items():
                choice = choices.get(request_id)
                if choice is not None:
                    setattr(choice, name, value)
        for part in message.prompt_logprobs:
            choice = choices.get(part.request_id)
            if choice is not None:
                choice.prompt.logprobs.append(part)
        for position, finish in enumerate(message.finished):
            choice = choices.pop(finish.request_id, None)
            if choice is None:
                continue
            choice.end(finish, message.tails.get(position, ""))
            record = choice.request
            record.unfinished -= 1
            if not record.touched:
                record.touched = True
                touched.append(record)
        for record in touched:
            self._tell(record)

    def _observe_round(self, touched: list[RequestRecord]) -> None:
        now = time.monotonic()
        store = self.store
        for record in touched:
            if self.config.pools:  # what comes are vectors
                record.first_token = record.first_token or now
            elif record.last_token:
                store.observe(metrics.INTER_TOKEN_SECONDS, now - record.last_token)
            else:
                record.first_token = now
                store.observe(metrics.FIRST_TOKEN_SECONDS, now - record.started)
            record.last_token = now

    def _tell(self, record: RequestRecord) -> None:
        """Wakes the handler if there is something for it to do."""
        record.touched = False
        if record.to_accept:
            for prompt in record.prompts:
                if not prompt.accepted and prompt.started:
                    self._accepted(prompt, record)
        if record.held:
            self._batches.send_more(record)
        if record.done:
            record.wake()
        elif record.stream:
            if record.sending and record.pending() > MAX_PENDING_TOKENS:
                _log.info("a stream was cut off: its client is %d tokens behind", record.pending())
                self.fail(record, RequestError("the client reads too slowly; its stream was cut off"))
                if record.drop_connection is not None:
                    record.drop_connection()
            elif record.wants_sending(self.config.stream_interval):
                record.tell()

    def _on_abort_named(self, message: AbortNamed) -> None:
        self.abort_named(message.name, message.owner, here_only=True)

    def _on_encoded(self, message: Encoded) -> None:
        if self.images is not None:
            self.store.add(metrics.IMAGE_ENCODES, message.encoded)
            self.images.encodes.on_encoded(message)

    def _on_encoder_progress(self, message: EncoderProgress) -> None:
        if self.images is not None:
            self.images.encodes.on_progress(message)

    def _on_encoder_ready(self, message: EncoderReady) -> None:
        if self.images is not None:
            self.images.encodes.on_ready(message)

    _handlers: dict[type, Callable[..., None]] = {
        Accepted: _on_accepted,
        Refused: _on_refused,
        TextDeltas: _on_text,
        AbortNamed: _on_abort_named,
        Flushed: lambda self, message: self._flushes.on_flushed(message),
        ConstraintPrepared: lambda self, message: self._constraints.on_prepared(message),
        Hello: _on_hello,
        Encoded: _on_encoded,
        EncoderProgress: _on_encoder_progress,
        EncoderReady: _on_encoder_ready,
    }

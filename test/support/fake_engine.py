"""A Router and Detokenizer in one thread of the test process, behind the real sockets: scripted tokens for the Http Server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lightllm.ipc.channels import EVERY_EPOCH, Epoch, PullChannel, PushChannel, make_context
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot, SnapshotWriter
from lightllm.protocol import codec
from lightllm.protocol.messages import (
    AbortRequest,
    Accepted,
    AddRequest,
    Choice,
    ConstraintPrepared,
    Finish,
    FinishReason,
    FlushCache,
    Flushed,
    Hello,
    PrepareConstraint,
    PromptLogprobs,
    Refused,
    TextDeltas,
    TopLogprobs,
    WorkerStarted,
    worker_of,
)
from lightllm.tokenizer import Tokenizer

DEFAULT_ANSWER = "Größe 🙂 of one two"


@dataclass
class _Running:
    request: AddRequest
    token_ids: list[int]
    texts: list[str]
    tail: str
    reason: FinishReason
    next: int = 0
    abort: FinishReason | None = None
    entered: float = field(default_factory=time.monotonic)


@dataclass
class Script:
    """What the engine does; tests change it."""

    answer: str = DEFAULT_ANSWER
    """Every request gets this text, token by token, up to its max_new_tokens."""
    eos: bool = True
    """Ends with the EOS token."""
    refuse: Refused | None = None
    """Refuses requests with this error."""
    accept: bool = True
    halt_at: int | None = None
    """No request gets more tokens than that, for now."""
    prepare: bool = True
    """Constraints are prepared as soon as that is asked for; False: not yet."""
    deaf: bool = False
    """Does nothing about aborts."""
    hold: bool = False
    """Accepts, but makes no tokens until it is False again."""
    endless: bool = False
    """Repeats the answer until max_new_tokens."""
    finish_error: str = ""
    """Not empty: requests end with reason "error" after `error_after` tokens."""
    error_after: int = 0
    finish_alone: bool = False
    """The finish comes in a message of its own, with a tail."""
    held_back: int = 0
    """So many tokens' text comes only with the token behind them, as when it may become a stop string."""
    tokens_a_round: int = 1
    pause: float = 0.0
    """Seconds between rounds."""
    cached_tokens: int = 3
    stop: str = ""
    """Answers that are not cut off end with this stop string."""
    pool: Callable[[list[int]], list[float]] | None = None
    """From a prompt's token ids to the vector that is all the answer there is, as of a model for vectors."""
    extra: dict[str, object] = field(default_factory=dict)


class FakeEngine:
    """Starts on construction; `close` ends it. `added` and `aborted` hold what has arrived: a request is in
    `added` as soon as it runs or, when it is refused,
    before its client hears of it, and an abort in `aborted` when it has been obeyed or not heard."""

    def __init__(self, runtime: RuntimeDir, tokenizer: Tokenizer, eos_token_id: int = 2) -> None:
        self.script = Script()
        self.added: list[AddRequest] = []
        self.aborted: list[AbortRequest] = []
        self.prepared: list[PrepareConstraint] = []
        """What has been asked for, answered or not."""
        self.runtime = runtime
        self._tokenizer = tokenizer
        self._eos = eos_token_id
        self._running: dict[int, _Running] = {}
        self._snapshot = SnapshotWriter(runtime.snapshot_file)
        self._epoch = Epoch(runtime.epoch)
        self._stop = threading.Event()
        self._restart = threading.Event()
        self.ready()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._bound.wait(10)

    def ready(self, **fields: float) -> None:
        """Writes the snapshot."""
        values = {
            "ready": 1,
            "max_req_total_len": 512,
            "vocab_size": self._tokenizer.vocab_size,
            "slots_total": 1000,
        }
        self._snapshot.write(Snapshot(**(values | fields)))  # type: ignore[arg-type]

    def restart(self) -> None:
        """Forgets everything, as an engine that is started anew, and says hello to worker 0."""
        self._restart.set()
        self.wait_for(lambda: not self._restart.is_set())

    def progress(self) -> list[int]:
        """Tokens that each running request has got."""
        return [running.next for running in list(self._running.values())]

    @property
    def active(self) -> int:
        return len(self._running)

    def wait_for(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Waits until `condition` holds; fails the test otherwise."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not come true"
            time.sleep(0.002)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        context = make_context()
        intake = PullChannel(context, self.runtime.router_intake, codec.to_router, self._epoch)
        constraints = PullChannel(context, self.runtime.constraint_intake, codec.to_constraints, EVERY_EPOCH)
        unanswered: list[PrepareConstraint] = []
        self._bound.set()
        self._out: dict[int, PushChannel] = {}
        self._context = context
        while not self._stop.is_set():
            intake.wait(1 if self._running and not self.script.hold else 5)
            if self._restart.is_set():
                self._running.clear()
                self._epoch.raise_to(self.runtime.begin_epoch())
                self._push(0).send(Hello(self._epoch.number))
                self._restart.clear()
            while (asked := constraints.receive()) is not None:
                self.prepared.append(asked)
                unanswered.append(asked)
            while unanswered and self.script.prepare:
                asked = unanswered.pop(0)
                self._push(asked.worker).send(ConstraintPrepared(asked.ticket))
            while (message := intake.receive()) is not None:
                self._take(message)
            if not self.script.hold:
                self._round()
                if self.script.pause:
                    time.sleep(self.script.pause)
        intake.close()
        constraints.close()
        for channel in self._out.values():
            channel.close()
        context.term()

    def _push(self, worker: int) -> PushChannel:
        if worker not in self._out:
            self._out[worker] = PushChannel(self._context, self.runtime.http_results(worker), self._epoch)
        return self._out[worker]

    def _take(self, message: AddRequest | AbortRequest | FlushCache) -> None:
        if isinstance(message, FlushCache):
            if self.script.accept:
                self._push(message.worker).send(Flushed(message.ticket, 42))
            return
        if isinstance(message, AbortRequest):
            running = None if self.script.deaf else self._running.pop(message.request_id, None)
            self.aborted.append(message)
            if running is not None:
                self._finish_alone(message.request_id, running, message.reason)
            return
        if isinstance(message, WorkerStarted):
            return
        ids = [choice.request_id for choice in message.choices]
        worker = worker_of(ids[0])
        if self.script.refuse is not None:
            self.added.append(message)
            refuse = self.script.refuse
            self._push(worker).send(
                Refused(ids, refuse.error, refuse.message, refuse.param, refuse.retry_after)
            )
            return
        if self.script.accept:
            self._push(worker).send(Accepted(ids))
        for choice in message.choices:
            self._running[choice.request_id] = self._start(message, choice)
        self.added.append(message)

    def _start(self, request: AddRequest, choice: Choice) -> _Running:
        script, limit = self.script, request.params.max_new_tokens
        if script.pool is not None:
            return _Running(request, [0], [""], "", "stop")
        ids = self._tokenizer.encode(script.answer, add_special_tokens=False)
        if script.endless:
            ids = (ids * (limit // max(1, len(ids)) + 1))[:limit]
        reason: FinishReason = "stop"
        if script.eos and not script.endless:
            ids = [*ids, self._eos]
        if script.endless or len(ids) > limit:
            ids, reason = ids[:limit], "length"
        stream = self._tokenizer.stream(request.prompt_ids.tolist(), request.params.skip_special_tokens)
        texts = [stream.push(i) for i in ids]
        held, behind = script.held_back, script.held_back + 1
        texts[:behind] = [*[""] * held, "".join(texts[:behind])]
        return _Running(request, ids, texts, stream.finish(), reason, len(choice.output_ids))

    def _round(self) -> None:
        by_worker: dict[int, list[int]] = {}
        for request_id in self._running:
            by_worker.setdefault(worker_of(request_id), []).append(request_id)
        for worker, ids in by_worker.items():
            self._push(worker).send(self._deltas(ids))

    def _deltas(self, request_ids: list[int]) -> TextDeltas:
        deltas = TextDeltas([], [], [], [])
        for request_id in request_ids:
            running = self._running[request_id]
            if running.next == 0 and self.script.cached_tokens:
                deltas.cached_tokens[request_id] = self.script.cached_tokens
            if running.next == 0:
                deltas.entered[request_id] = running.entered
            if running.next == 0 and running.request.params.prompt_logprobs >= 0:
                deltas.prompt_logprobs.append(self._prompt_logprobs(request_id, running.request))
            for _ in range(self.script.tokens_a_round):
                halted = running.next == self.script.halt_at
                if running.next < len(running.token_ids) and not halted and not self._failed(running):
                    self._token(deltas, request_id, running)
            if running.next == len(running.token_ids) or self._failed(running):
                self._end(deltas, request_id, running)
        return deltas

    def _failed(self, running: _Running) -> bool:
        return bool(self.script.finish_error) and running.next >= self.script.error_after

    def _token(self, deltas: TextDeltas, request_id: int, running: _Running) -> None:
        index = running.next
        running.next += 1
        if self.script.pool is not None:
            vector = self.script.pool(running.request.prompt_ids.tolist())
            deltas.pooled[request_id] = np.array(vector, dtype=np.float32)
        logprob = -0.5 - index
        if running.request.params.logprobs:
            count = running.request.params.logprobs
            token_ids = [running.token_ids[index], *range(10, 10 + count)][:count]
            deltas.top[len(deltas.token_ids)] = TopLogprobs(token_ids, [logprob - k for k in range(count)])
        deltas.request_ids.append(request_id)
        deltas.token_ids.append(running.token_ids[index])
        deltas.texts.append(running.texts[index])
        deltas.logprobs.append(logprob)

    def _end(self, deltas: TextDeltas, request_id: int, running: _Running) -> None:
        del self._running[request_id]
        if self.script.finish_alone:
            self._push(worker_of(request_id)).send(deltas)
            for part in (deltas.request_ids, deltas.token_ids, deltas.texts, deltas.logprobs):
                part.clear()
            running.tail = "<tail>"
        if running.tail:
            deltas.tails[len(deltas.finished)] = running.tail
        reason: FinishReason = "error" if self.script.finish_error else running.reason
        deltas.finished.append(self._finish(request_id, running, reason))

    def _finish_alone(self, request_id: int, running: _Running, reason: FinishReason) -> None:
        deltas = TextDeltas([], [], [], [])
        deltas.finished.append(self._finish(request_id, running, reason))
        self._push(worker_of(request_id)).send(deltas)

    def _finish(self, request_id: int, running: _Running, reason: FinishReason) -> Finish:
        prompt_tokens = len(running.request.prompt_ids)
        return Finish(
            request_id,
            reason,
            prompt_tokens,
            running.next,
            self.script.cached_tokens,
            self.script.finish_error,
            stop=self.script.stop if reason == "stop" else "",
        )

    def _prompt_logprobs(self, request_id: int, request: AddRequest) -> PromptLogprobs:
        count = len(request.prompt_ids) - 1
        logprobs = -np.arange(1, count + 1, dtype=np.float32)
        k = request.params.prompt_logprobs
        top = [TopLogprobs(list(range(20, 20 + k)), [-1.0] * k) for _ in range(count)] if k else []
        return PromptLogprobs(request_id, 1, logprobs, top)

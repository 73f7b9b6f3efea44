"""All running streams: requests and rounds of tokens in, text for the Http workers and aborts for the Router out.

No sockets here; `process.py` and the offline engine's tests drive the same object.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import msgspec

from lightllm.detokenizer.stream import ChoiceStream, Rules
from lightllm.protocol.messages import (
    AbortRequest,
    AddRequest,
    Finish,
    FinishReason,
    RoundTokens,
    TextDeltas,
    worker_of,
)
from lightllm.tokenizer import Tokenizer

logger = logging.getLogger("lightllm.detokenizer")


@dataclasses.dataclass(frozen=True)
class Output:
    """What one message leads to."""

    deltas: defaultdict[int, TextDeltas] = dataclasses.field(default_factory=lambda: defaultdict(_empty))
    """Http worker -> its text; workers with nothing new are left out."""
    aborts: list[AbortRequest] = dataclasses.field(default_factory=list)
    """For the Router: requests that a stop string has ended."""


class MalformedMessage(Exception):
    """A message whose parts contradict each other."""


class Detokenizer:
    """Owns the state of every choice from its `AddRequest` until the Router's `Finish`."""

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: list[int], workers: int) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._workers = workers
        self._streams: dict[int, ChoiceStream] = {}

    def __len__(self) -> int:
        """Streams whose finish has not come yet."""
        return len(self._streams)

    def drop_streams(self) -> None:
        """The Router that fed them is gone; the Http Servers send anew what is to go on."""
        self._streams.clear()

    def handle(self, message: AddRequest | RoundTokens) -> Output:
        """Raises `MalformedMessage` before anything has changed."""
        return self.add(message) if isinstance(message, AddRequest) else self.apply(message)

    def add(self, request: AddRequest) -> Output:
        """A new or restored request. There is output only if the tokens of a restored one hold a stop string."""
        for choice in request.choices:
            if not 0 <= worker_of(choice.request_id) < self._workers:
                raise MalformedMessage(f"request {choice.request_id} belongs to no Http worker")
        output = Output()
        try:
            rules = Rules.of(request, self._tokenizer, self._eos_token_ids)
            prompt_ids = cast(Sequence[int], request.text_ids)  # no list of it: only its last tokens are read
            for choice in request.choices:
                stream = ChoiceStream(
                    choice.request_id, rules, self._tokenizer, prompt_ids, choice.output_ids.tolist()
                )
                stream.cached_tokens = choice.cached_tokens
                self._streams[choice.request_id] = stream
                if stream.stopped:
                    self._stop(choice.request_id, stream, output)
        except Exception:  # its tokens are of no use: they cannot be read
            for choice in request.choices:
                self._streams.pop(choice.request_id, None)
                self._fail(Finish(choice.request_id, "error", len(request.prompt_ids), 0), output)
        return output

    def apply(self, message: RoundTokens) -> Output:
        """One round: the text of its tokens, then its finishes."""
        if not len(message.request_ids) == len(message.token_ids) == len(message.logprobs):
            raise MalformedMessage("the lists of a round differ in length")
        output = Output()
        deltas, streams = output.deltas, self._streams
        for request_id, count in message.cached_tokens.items():
            stream = streams.get(request_id)
            if stream is not None and not stream.stopped:
                stream.cached_tokens = count
                deltas[stream.worker].cached_tokens[request_id] = count
        for request_id, moment in message.entered.items():
            stream = streams.get(request_id)
            if stream is not None and not stream.stopped:
                deltas[stream.worker].entered[request_id] = moment
        for request_id, vector in message.pooled.items():
            stream = streams.get(request_id)
            if stream is not None:
                deltas[stream.worker].pooled[request_id] = vector
        for i, request_id in enumerate(message.request_ids):
            stream = streams.get(request_id)
            if stream is None or stream.stopped:
                continue
            to = deltas[stream.worker]
            token_id = message.token_ids[i]
            try:
                text = "" if request_id in message.pooled else stream.push(token_id)
            except Exception:
                stream.stopped = True
                self._fail(_finish_of(request_id, "error", stream), output)
                continue
            to.request_ids.append(request_id)
            to.token_ids.append(token_id)
            to.texts.append(text)
            to.logprobs.append(message.logprobs[i])
            if message.top and i in message.top:
                to.top[len(to.token_ids) - 1] = message.top[i]
            if stream.stopped:
                self._stop(request_id, stream, output)
        for prompt in message.prompt_logprobs:
            stream = streams.get(prompt.request_id)
            if stream is not None and not stream.stopped:
                deltas[stream.worker].prompt_logprobs.append(prompt)
        for finish in message.finished:
            self._finish(finish, output)
        if output.aborts:
            ended = {finish.request_id for finish in message.finished}
            output.aborts[:] = [abort for abort in output.aborts if abort.request_id not in ended]
        return output

    def _stop(self, request_id: int, stream: ChoiceStream, output: Output) -> None:
        """A stop string was found: the stream ends here, whatever the Router still sends for it."""
        output.deltas[stream.worker].finished.append(_finish_of(request_id, "stop", stream))
        output.aborts.append(AbortRequest(request_id, "stop"))

    def _fail(self, finish: Finish, output: Output) -> None:
        """An exception while a stream's text is made ends that stream; to be called while it is handled."""
        logger.exception("the text of request %d cannot be made", finish.request_id)
        finish = msgspec.structs.replace(
            finish,
            reason="error",
            error="the text of this answer could not be made; the server's log says why",
        )
        output.deltas[worker_of(finish.request_id)].finished.append(finish)
        output.aborts.append(AbortRequest(finish.request_id, "error"))

    def _finish(self, finish: Finish, output: Output) -> None:
        stream = self._streams.pop(finish.request_id, None)
        if stream is None:
            logger.debug("finish of request %d, which is not known", finish.request_id)
            return
        if stream.stopped:
            return
        try:
            tail = stream.finish()
        except Exception:
            self._fail(finish, output)
            return
        if stream.stopped and finish.reason in ("length", "stop"):
            finish = msgspec.structs.replace(finish, reason="stop", stop=stream.stop)
        to = output.deltas[stream.worker]
        if tail:
            to.tails[len(to.finished)] = tail
        to.finished.append(finish)


def _finish_of(request_id: int, reason: FinishReason, stream: ChoiceStream) -> Finish:
    return Finish(
        request_id, reason, stream.prompt_tokens, stream.output_tokens, stream.cached_tokens, stop=stream.stop
    )


def _empty() -> TextDeltas:
    return TextDeltas(request_ids=[], token_ids=[], texts=[], logprobs=[])

"""What is asked and how the answer reads: LightLLM's own `/generate_stream` and OpenAI's `/v1/completions`."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import msgspec

from lightllm.bench.dataset import Request
from lightllm.bench.http_stream import StreamFailed


@dataclasses.dataclass
class Outcome:
    """What became of one request; times are `time.perf_counter()` seconds."""

    wanted_tokens: int
    prompt_tokens: int = 0
    """As the server counts, else as the data set says."""
    output_tokens: int = 0
    start: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    """Arrival of each event with a token."""
    finish_reason: str | None = None
    failure: str | None = None
    """Kind of failure, for grouping."""
    detail: str = ""
    retry_after: int | None = None
    """Seconds after which a refused request may come again."""
    ended: float = 0.0

    @property
    def ttft(self) -> float:
        return self.times[0] - self.start

    @property
    def latency(self) -> float:
        return self.times[-1] - self.start


class Api(Protocol):
    path: str

    def body(self, request: Request) -> bytes:
        """The request as JSON."""

    def read(self, data: bytes, now: float, outcome: Outcome) -> None:
        """Takes one event into the outcome; raises `StreamFailed` for an error event."""


class _Token(msgspec.Struct):
    count_output_tokens: int = 0
    prompt_tokens: int = 0


class _NativeEvent(msgspec.Struct):
    token: _Token | None = None
    finish_reason: str | None = None
    message: str = ""
    error: Any = None


class NativeApi:
    """`POST /generate_stream`: one event a token."""

    path = "/generate_stream"

    def __init__(self, ignore_eos: bool) -> None:
        self._ignore_eos = ignore_eos
        self._decoder = msgspec.json.Decoder(_NativeEvent)

    def body(self, request: Request) -> bytes:
        parameters = {
            "max_new_tokens": request.output_tokens,
            "do_sample": False,
            "ignore_eos": self._ignore_eos,
        }
        return msgspec.json.encode({"inputs": request.prompt, "parameters": parameters})

    def read(self, data: bytes, now: float, outcome: Outcome) -> None:
        event = _decode(self._decoder, data)
        if event.token is None:
            raise StreamFailed("error event", event.message or str(event.error))
        count = event.token.count_output_tokens
        if count != outcome.output_tokens:  # a closing event may repeat the last token
            outcome.times.append(now)
            outcome.output_tokens = count
        outcome.prompt_tokens = event.token.prompt_tokens or outcome.prompt_tokens
        outcome.finish_reason = event.finish_reason or outcome.finish_reason


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _CompletionEvent(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class OpenAIApi:
    """`POST /v1/completions`, streamed, with the usage that the server counts."""

    path = "/v1/completions"

    def __init__(self, ignore_eos: bool, model: str) -> None:
        self._ignore_eos = ignore_eos
        self._model = model
        self._decoder = msgspec.json.Decoder(_CompletionEvent)

    def body(self, request: Request) -> bytes:
        fields: dict[str, Any] = {
            "model": self._model,
            "prompt": request.prompt,
            "max_tokens": request.output_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ignore_eos:  # an extension: left out where it is not wanted, for servers that refuse it
            fields["ignore_eos"] = True
        return msgspec.json.encode(fields)

    def read(self, data: bytes, now: float, outcome: Outcome) -> None:
        if data == b"[DONE]":
            return
        event = _decode(self._decoder, data)
        if event.error is not None:
            raise StreamFailed("error event", str(event.error)[:200])
        if event.choices:
            outcome.times.append(now)
            outcome.output_tokens = max(outcome.output_tokens, len(outcome.times))
            outcome.finish_reason = event.choices[0].finish_reason or outcome.finish_reason
        if event.usage is not None and event.usage.completion_tokens:
            outcome.output_tokens = event.usage.completion_tokens
            outcome.prompt_tokens = event.usage.prompt_tokens


def _decode(decoder: msgspec.json.Decoder[Any], data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise StreamFailed("malformed event", f"{error}: {data[:100]!r}") from error

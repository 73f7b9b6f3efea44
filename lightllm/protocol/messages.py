"""Messages between Http Server, Router and Detokenizer.

    Http Server --AddRequest, AbortRequest, FlushCache--> Router      (one intake socket, bound by the Router)
    Detokenizer --AbortRequest(reason="stop")-->         Router       (same socket)
    Router      --Accepted, Refused, Flushed-->          Http Server  (one result socket a worker, bound by it)
    Router      --Hello, AddRequest (as received), RoundTokens--> Detokenizer
    Detokenizer --Hello (as received)-->                 Http Server  (same result socket)
    Detokenizer --TextDeltas-->                          Http Server  (same result socket)
    Http Server --AbortNamed-->                          Http Server  (another worker's result socket)
    Http Server --PrepareConstraint-->                   Model Backend rank 0   (a socket of its own)
    Model Backend rank 0 --ConstraintPrepared-->         Http Server  (same result socket)
    Visual Server --Encoded, EncoderProgress, EncoderReady--> Http Server  (same result socket; see `images`)

Every accepted request ends with exactly one finish, which travels Router -> Detokenizer -> Http Server behind its last
token. A `request_id` holds the Http worker that owns it: `request_id >> WORKER_SHIFT`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32, Array
from lightllm.protocol.images import Encoded, EncoderProgress, EncoderReady
from lightllm.sampling_params import SamplingParams

WORKER_SHIFT = 48

FinishReason = Literal["stop", "length", "abort", "timeout", "error"]
"""stop: EOS, stop token or stop string; length: max_new_tokens or the memory limit reached; error: see `Finish.error`."""


def make_request_id(worker: int, serial: int) -> int:
    """A request id from (Http worker, serial number)."""
    return (worker << WORKER_SHIFT) | serial


def worker_of(request_id: int) -> int:
    return request_id >> WORKER_SHIFT


class Choice(msgspec.Struct, array_like=True, frozen=True):
    """One of the `n` siblings of a request."""

    request_id: int
    index: int
    """Choice index, part of the random counter."""
    output_ids: Array = EMPTY_INT32
    """int32 [tokens so far]: empty for a new request; what was already generated when one is restored."""
    cached_tokens: int = 0
    """Of a restored request with outputs: prompt tokens that the cache held when they were computed first."""


class ImageSpan(msgspec.Struct, array_like=True, frozen=True):
    """The place of one image in a prompt: tokens [start, start + tokens), whose ids are the image's own (virtual ids), in no
    vocabulary."""

    start: int
    tokens: int
    item_id: int
    """Of the image's embedding in the image cache: float [tokens, hidden size, or a multiple of it]."""
    grid: tuple[int, int, int] | None = None
    """(t, h, w) of its tokens, t * h * w = tokens, in row-major order; only for models whose rotary positions have three axes
    (M-RoPE)."""


class AddRequest(msgspec.Struct, array_like=True, frozen=True, tag="add"):
    """A validated request. Its choices are accepted or refused together."""

    prompt_ids: Array
    """int32 [prompt length], at least one."""
    params: SamplingParams
    choices: list[Choice]
    restored: bool = False
    """It was accepted by a Router that is gone: it goes on, and is not refused for load."""
    uncut: Array = EMPTY_INT32
    """int32 [2 * spans]: start and end of prompt tokens that one chunk must complete, ascending and disjoint: an image whose
    tokens attend to each other in both directions."""
    images: list[ImageSpan] = []
    """Ascending and disjoint."""
    follows: bool = False
    """The first prompt of its batch has been accepted: it is not refused for load."""

    @property
    def text_ids(self) -> Array:
        """The prompt's token ids but for those of images."""
        if not self.images:
            return self.prompt_ids
        bounds = [(image.start, image.start + image.tokens) for image in self.images]
        return np.delete(self.prompt_ids, np.concatenate([np.arange(*span) for span in bounds]))


class AbortRequest(msgspec.Struct, array_like=True, frozen=True, tag="abort"):
    """Ends a request: client gone, `abort`, time out, or a stop string (from the Detokenizer, reason "stop").

    Unknown and finished ids are ignored, but the latest thousands are remembered: an abort may overtake its request.
    """

    request_id: int
    reason: FinishReason = "abort"


class FlushCache(msgspec.Struct, array_like=True, frozen=True, tag="flush_cache"):
    """Empties the prefix cache of what no running request reads. The Router answers the worker with `Flushed`."""

    worker: int
    ticket: int


class Hello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    """A Router has begun this epoch, and knows no request. Router -> Detokenizer, which drops the streams of earlier epochs
    and passes it on to every Http Server, behind the last text of those. An Http Server then sends the Router all that it
    has not finished."""

    epoch: int


class WorkerStarted(msgspec.Struct, array_like=True, frozen=True, tag="worker_started"):
    """An Http Server is there: what its worker asked for before, under ids below `first_id`, has no reader any more. Sent at its
    start, and to every Router behind all that has to go on."""

    first_id: int


ToRouter = AddRequest | AbortRequest | FlushCache | WorkerStarted


class Accepted(msgspec.Struct, array_like=True, frozen=True, tag="accepted"):
    request_ids: list[int]


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """`error` is a name in `errors.REQUEST_ERRORS`."""

    request_ids: list[int]
    error: str
    message: str
    param: str | None = None
    retry_after: int | None = None


class TopLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """The k most likely tokens of one position, best first."""

    token_ids: list[int]
    logprobs: list[float]


class Flushed(msgspec.Struct, array_like=True, frozen=True, tag="flushed"):
    """The answer to the `FlushCache` with this ticket."""

    ticket: int
    tokens: int
    """How many the cache has lost."""


class PromptLogprobs(msgspec.Struct, array_like=True, frozen=True):
    """Log-probabilities of the prompt tokens [start, start + len(logprobs)) of one request; token 0 has none."""

    request_id: int
    start: int
    logprobs: Array
    """float32 [positions]"""
    top: list[TopLogprobs] = []


class Finish(msgspec.Struct, array_like=True, frozen=True):
    request_id: int
    reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    """Tokens that were generated and count, the EOS included, what ran over excluded."""
    cached_tokens: int = 0
    error: str = ""
    """For reason "error": what the client is told."""
    error_type: str = "BackendFailed"
    """A name in `errors.REQUEST_ERRORS`."""
    stop: str = ""
    """For reason "stop": the stop string that was found, if one was."""


class RoundTokens(msgspec.Struct, array_like=True, frozen=True, tag="tokens"):
    """What one round made, for all requests: parallel lists, one entry a token, in order."""

    request_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    top: dict[int, TopLogprobs] = {}
    """Entry index -> alternatives, for requests that asked for them."""
    prompt_logprobs: list[PromptLogprobs] = []
    finished: list[Finish] = []
    cached_tokens: dict[int, int] = {}
    """Request id -> prompt tokens that the cache held, with the first token of a request; those with none are left out."""
    entered: dict[int, float] = {}
    """Request id -> `time.monotonic()` when it left the waiting list, with its first token."""
    pooled: dict[int, Array] = {}
    """Request id -> float32 [size]: what a model for vectors makes of its prompt, with its one token, which means nothing."""


ToDetokenizer = AddRequest | RoundTokens | Hello


class TextDeltas(msgspec.Struct, array_like=True, frozen=True, tag="text"):
    """New tokens with their text for one Http worker: parallel lists, one entry a token, in order.

    `texts[i]` is what became certain with token i: it may be empty (half a character, a possible stop string) or hold
    text of earlier tokens. Text that becomes certain only at the end is in `tails`.
    """

    request_ids: list[int]
    token_ids: list[int]
    texts: list[str]
    logprobs: list[float]
    top: dict[int, TopLogprobs] = {}
    prompt_logprobs: list[PromptLogprobs] = []
    finished: list[Finish] = []
    tails: dict[int, str] = {}
    """Index into `finished` -> the remaining text of that request."""
    cached_tokens: dict[int, int] = {}
    """As in `RoundTokens`."""
    entered: dict[int, float] = {}
    """As in `RoundTokens`."""
    pooled: dict[int, Array] = {}
    """As in `RoundTokens`."""


class AbortNamed(msgspec.Struct, array_like=True, frozen=True, tag="abort_named"):
    """Http worker -> Http worker: a client asked to abort a request that the sender does not know."""

    name: str
    """The request's X-Request-Id, or the id in its answer."""
    owner: str | None = None
    """Only requests of this caller; None: of anybody."""


class PrepareConstraint(msgspec.Struct, array_like=True, frozen=True, tag="prepare_constraint"):
    """Http Server -> Model Backend rank 0: a request with this constraint is to come. Answered with `ConstraintPrepared` when the
    matcher is made, so that no round waits for it."""

    worker: int
    ticket: int
    name: str
    """Of the field of `SamplingParams` that holds `text`."""
    text: str
    prefix: str
    """`SamplingParams.constraint_prefix`"""
    grammar: str
    """The constraint as llguidance reads it (`constraints.grammars.grammar_of`)."""


class ConstraintPrepared(msgspec.Struct, array_like=True, frozen=True, tag="constraint_prepared"):
    """The answer to the `PrepareConstraint` with this ticket."""

    ticket: int


ToHttp = (
    Accepted | Refused | TextDeltas | AbortNamed | Flushed | Hello | Encoded | EncoderProgress | EncoderReady
    | ConstraintPrepared
)  # fmt: skip

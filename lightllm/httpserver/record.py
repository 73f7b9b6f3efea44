"""The record of one client request, from its acceptance until its last byte is sent.

    RequestRecord      one HTTP request
      PromptRecord     one of its prompts = one AddRequest
        ChoiceRecord   one of the n answers to that prompt = one request id

A record holds all that is needed to send the request anew when the Router has been lost: prompt ids, parameters with
their seed, token ids so far.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time
from collections.abc import Callable

from lightllm.errors import RequestError
from lightllm.protocol.arrays import EMPTY_INT32, Array, int32
from lightllm.protocol.messages import (
    AddRequest,
    Choice,
    Finish,
    FinishReason,
    ImageSpan,
    PromptLogprobs,
    TopLogprobs,
)
from lightllm.sampling_params import SamplingParams

MAX_PENDING_TOKENS = 4096
"""Tokens that may wait for a slow reader of a stream before it is cut off."""


@dataclasses.dataclass(slots=True, eq=False)
class ChoiceRecord:
    """One answer: parallel lists, one entry a token; `sent` of them have gone to the client."""

    request_id: int
    index: int
    """Position among all choices of the HTTP request: prompt * n + choice."""
    prompt: PromptRecord
    request: RequestRecord
    token_ids: list[int] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    top: dict[int, TopLogprobs] = dataclasses.field(default_factory=dict)
    cached_tokens: int = 0
    """Prompt tokens that the cache held, known from the first token on."""
    entered: float = 0.0
    """`time.monotonic()` when it left the waiting list; known from the first token on, 0: not (yet)."""
    pooled: Array | None = None
    """float32 [size]: the vector of its prompt, from a model for vectors."""
    finish: Finish | None = None
    tail: str = ""
    """Text that came with the finish after the last token had been sent already."""
    sent: int = 0
    ended: bool = False
    """The client has been told the finish reason."""

    @property
    def text(self) -> str:
        return "".join(self.texts) + self.tail

    @property
    def output_tokens(self) -> int:
        return len(self.token_ids) if self.finish is None else self.finish.output_tokens

    @property
    def failed(self) -> bool:
        """It ended without an answer."""
        return self.finish is not None and self.finish.reason == "error"

    @property
    def has_news(self) -> bool:
        """There is something that a stream has not told the client."""
        return len(self.token_ids) > self.sent or (self.finish is not None and not self.ended)

    def end(self, finish: Finish, tail: str) -> None:
        """The one finish of this choice; `tail` joins the last token's text unless that has been sent."""
        self.finish = finish
        if tail:
            if self.sent < len(self.texts):
                self.texts[-1] += tail
            else:
                self.tail = tail

    def take_text(self) -> str:
        """The text that has not been sent; counts it as sent."""
        texts = self.texts
        sent = self.sent
        text = texts[sent] if len(texts) - sent == 1 else "".join(texts[sent:])
        self.sent = len(texts)
        if self.finish is not None:
            text += self.tail
        return text


@dataclasses.dataclass(slots=True, eq=False)
class PromptRecord:
    """One prompt with its parameters; its choices are accepted or refused together."""

    prompt_ids: list[int]
    params: SamplingParams
    text: str = ""
    """The prompt as the client wrote it; of token ids, or of a prompt that was cut, only if it is wanted back."""
    images: list[ImageSpan] = dataclasses.field(default_factory=list)
    """Each with one reference to its item in the image cache, until the request is forgotten."""
    uncut: Array = dataclasses.field(default_factory=lambda: EMPTY_INT32)
    """As in `AddRequest`."""
    choices: list[ChoiceRecord] = dataclasses.field(default_factory=list)
    accepted: bool = False
    follows: bool = False
    """It was sent after the first prompt of its batch had been accepted."""
    logprobs: list[PromptLogprobs] = dataclasses.field(default_factory=list)

    def add_request(self) -> AddRequest:
        """The message to the Router: the choices that are not finished, as far as they have come."""
        return AddRequest(
            prompt_ids=int32(self.prompt_ids),
            params=self.params,
            choices=[
                Choice(choice.request_id, index, int32(choice.token_ids), choice.cached_tokens)
                for index, choice in enumerate(self.choices)
                if choice.finish is None
            ],
            restored=self.accepted,
            follows=self.follows,
            uncut=self.uncut,
            images=self.images,
        )

    @property
    def started(self) -> bool:
        """It has a token, or has ended without one."""
        return any(choice.token_ids or choice.finish is not None for choice in self.choices)

    @property
    def text_ids(self) -> list[int]:
        """The token ids but for those of images, which no tokenizer knows."""
        if not self.images:
            return self.prompt_ids
        ids: list[int] = []
        copied = 0
        for image in self.images:
            ids += self.prompt_ids[copied : image.start]
            copied = image.start + image.tokens
        return ids + self.prompt_ids[copied:]


class RequestRecord:
    """One HTTP request: its choices, and how its handler waits for news of them."""

    def __init__(
        self, prompts: list[PromptRecord], names: tuple[str, ...] = (), stream: bool = False, owner: str = ""
    ) -> None:
        self.prompts = prompts
        self.names = names
        """By which `/abort_request` knows it: X-Request-Id and the id in its answer."""
        self.owner = owner
        """The caller to whom it belongs: a digest of its key."""
        self.stream = stream
        self.begun: Callable[[], None] | None = None
        """Gives the choices what they had on another server, where the answer has begun."""
        self.choices: list[ChoiceRecord] = []
        self.unfinished = 0
        self.held: collections.deque[PromptRecord] = collections.deque()
        """The prompts of a batch that have not been sent yet."""
        self.unstarted: list[PromptRecord] = []
        """Those that have been sent while others were held, and had not started when they were last looked at."""
        self.to_accept = 0
        """Prompts without whose acceptance the answer does not begin."""
        self.error: RequestError | None = None
        """Why it was refused, or cut off."""
        self.started = time.monotonic()
        self.first_token = 0.0
        self.last_token = 0.0
        """`time.monotonic()`; 0.0: none yet."""
        self.touched = False
        """Has news in the message that is being handled."""
        self.disconnected = False
        self.abort_reason: FinishReason | None = None
        """Why the Router has been asked to end it, if it has."""
        self.aborted: asyncio.Future[None]
        """Done with the first abort; there from `EngineClient.begin` on."""
        self.sending = False
        """The handler is in `send`: if this is seen from outside, the client's buffers are full."""
        self.drop_connection: Callable[[], None] | None = None
        """Ends the connection of a stream whose client does not read; its handler may be blocked in `send`."""
        self.deliver: Callable[[], bool] | None = None
        """Sends a stream's news at once, without its handler; False: the handler has to."""
        self.timer: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None

    def add_choices(self, first_id: int) -> None:
        """Gives consecutive request ids to all choices."""
        for prompt in self.prompts:
            for _ in range(prompt.params.n):
                index = len(self.choices)
                choice = ChoiceRecord(first_id + index, index, prompt, self)
                prompt.choices.append(choice)
                self.choices.append(choice)
        self.unfinished = len(self.choices)
        if self.begun is not None:
            self.begun()

    def end_unsent(self, reason: FinishReason) -> None:
        """Ends all choices here: the Router has not been sent any."""
        for choice in self.choices:
            if choice.finish is None:
                prompt_tokens, tokens = len(choice.prompt.prompt_ids), len(choice.token_ids)
                choice.end(Finish(choice.request_id, reason, prompt_tokens, tokens, choice.cached_tokens), "")
        self.unfinished = 0

    @property
    def done(self) -> bool:
        return self.unfinished == 0

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.prompt_ids) for prompt in self.prompts)

    @property
    def image_tokens(self) -> int:
        """Of the prompt tokens."""
        return sum(image.tokens for prompt in self.prompts for image in prompt.images)

    @property
    def output_tokens(self) -> int:
        return sum(choice.output_tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were in the prefix cache, for the first choice of each prompt."""
        firsts = [prompt.choices[0].finish for prompt in self.prompts]
        return sum(finish.cached_tokens for finish in firsts if finish is not None)

    @property
    def entered(self) -> float:
        """`time.monotonic()` when the first of its choices left the waiting list; 0.0: none has that is known."""
        return min((choice.entered for choice in self.choices if choice.entered), default=0.0)

    def pending(self) -> int:
        """Tokens that the client has not got, of the choice that is furthest behind."""
        return max(len(choice.token_ids) - choice.sent for choice in self.choices)

    def wants_sending(self, interval: int) -> bool:
        """Whether a stream should write now: first token, `interval` tokens, or an end."""
        for choice in self.choices:
            count = len(choice.token_ids) - choice.sent
            if count >= interval or (count and not choice.sent):
                return True
            if choice.finish is not None and not choice.ended:
                return True
        return False

    @property
    def waiting(self) -> bool:
        """The handler is in `news`, and nothing has woken it."""
        return self._waiter is not None and not self._waiter.done()

    async def news(self) -> None:
        """Waits for `wake`. The caller looks at the record's state before it waits."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def tell(self) -> None:
        """A stream has news: they are sent, or the handler is woken."""
        if self.deliver is None or not self.deliver():
            self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""Streams that can go on on another server, and those that have begun on one (`protocol/resume.py`)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightllm.errors import MalformedBody, RequestError
from lightllm.http.body import BodyBudget, BodyLease, read_body
from lightllm.httpserver.record import RequestRecord
from lightllm.httpserver.rendering import Renderer
from lightllm.protocol.resume import ASKS, ROUTE, News, Resumption, mark

_RESUMED = "lightllm.resumption"
"""Key of the `Resumption` in the ASGI scope."""
_MAX_CHOICES = 128


def resumption(request: Request) -> Resumption | None:
    """Of a request whose answer has begun elsewhere."""
    return request.scope.get(_RESUMED)


def is_resumable(request: Request) -> bool:
    """Whether somebody wants to know how the answer could go on elsewhere."""
    return any(name == ASKS for name, _ in request.scope["headers"])


def new_identity(request: Request, prefix: str) -> tuple[str, int]:
    """Id and time of an answer: new ones, or those that it began with."""
    begun = resumption(request)
    if begun is not None:
        return begun.identity.id, begun.identity.created
    return prefix + secrets.token_hex(12), int(time.time())


class ResumeRoute:
    """ASGI middleware: `POST /lightllm/resume` is the request that it holds, further along."""

    def __init__(self, app: ASGIApp, max_body: int, vocab_size: Callable[[], int]) -> None:
        """max_body: bytes of a request without how far it has come."""
        self._app = app
        self._vocab_size = vocab_size
        self._budget = BodyBudget(2 * max_body)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != ROUTE or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        lease = BodyLease(self._budget)
        try:
            body = bytes(await read_body(Request(scope, receive), self._budget.largest, lease))
            begun = _read(body, self._vocab_size())
            inner = {**scope, "path": begun.path, "raw_path": begun.path.encode(), _RESUMED: begun}
            inner["headers"] = [*(h for h in scope["headers"] if h[0] != b"content-length"),
                                (b"content-length", b"%d" % len(bytes(begun.body)))]  # fmt: skip
            await self._app(inner, _replayed(bytes(begun.body), receive), send)
        finally:
            lease.end()


def _read(body: bytes, vocab_size: int) -> Resumption:
    """Raises `MalformedBody`."""
    try:
        begun = msgspec.json.decode(body, type=Resumption)
    except msgspec.DecodeError as error:
        raise MalformedBody(str(error)) from error
    indexes = [news.choice for news in begun.choices]
    lengths = [{len(news.token_ids), len(news.texts), len(news.logprobs)} for news in begun.choices]
    if len(set(indexes)) < len(indexes) or any(not 0 <= index < _MAX_CHOICES for index in indexes):
        raise MalformedBody("the choices must be different ones")
    if any(len(sizes) > 1 for sizes in lengths):
        raise MalformedBody("a choice has as many texts and log-probabilities as tokens")
    if any(not 0 <= token_id < vocab_size for news in begun.choices for token_id in news.token_ids):
        raise MalformedBody(f"token ids are 0 to {vocab_size - 1}")
    return begun


def _replayed(body: bytes, receive: Receive) -> Receive:
    """First the inner body, then what becomes of the connection."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def inner() -> Message:
        return left.pop() if left else await receive()

    return inner


class ResumableRenderer:
    """A renderer that tells beside each event what tokens it is of."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self.answer = renderer.answer
        self.error = renderer.error
        self._told: list[int] = []
        """Tokens of each choice."""
        self._ended: list[bool] = []

    def preparation(self, record: RequestRecord) -> Callable[[], None] | None:
        return self._renderer.preparation(record)

    def events(self, record: RequestRecord) -> list[bytes]:
        events = self._renderer.events(record)
        if not events:
            return events  # what a parser holds back is told with the event that it becomes
        return mark(events, self._news(record))

    def end(self, record: RequestRecord) -> list[bytes]:
        """Together or not at all: they are made anew elsewhere."""
        events = self._renderer.end(record)
        return mark(events, []) if events else events

    def skip(self, record: RequestRecord) -> None:
        """What has been sent needs not be told."""
        self._news(record)

    def _news(self, record: RequestRecord) -> list[News]:
        if not self._told:
            self._told, self._ended = [0] * len(record.choices), [False] * len(record.choices)
        news = []
        for place, choice in enumerate(record.choices):
            told, sent, ended = self._told[place], choice.sent, choice.ended
            if told == sent and ended == self._ended[place]:
                continue
            part = slice(told, sent)
            news.append(
                News(choice.index, choice.token_ids[part], choice.texts[part], choice.logprobs[part], choice.cached_tokens,
                     choice.finish if ended else None)
            )  # fmt: skip
            self._told[place], self._ended[place] = sent, ended
        return news


def go_on(record: RequestRecord, begun: Resumption) -> None:
    """Gives a record's choices what they had elsewhere. Raises `RequestError`: it is not of this request."""
    if len(record.prompts) != 1 or any(news.choice >= len(record.choices) for news in begun.choices):
        raise RequestError("the answer that is to go on has other choices than the request")
    most = record.prompts[0].params.max_new_tokens
    if any(len(news.token_ids) + (news.finish is None) > most for news in begun.choices):
        raise RequestError(f"the answer that is to go on has as many tokens as it may have: {most}")
    record.prompts[0].accepted = True
    for news in begun.choices:
        choice = record.choices[news.choice]
        choice.token_ids, choice.texts, choice.logprobs = news.token_ids, news.texts, news.logprobs
        choice.cached_tokens = news.cached_tokens
        if news.finish is not None:
            choice.finish = msgspec.structs.replace(news.finish, request_id=choice.request_id)
            record.unfinished -= 1


def skip_sent(renderer: Renderer, record: RequestRecord) -> None:
    """Brings a renderer to where the client is: events that it has got elsewhere are made and thrown away. To be called before
    anything new can have come."""
    while prepare := renderer.preparation(record):
        prepare()
    renderer.events(record)
    if isinstance(renderer, ResumableRenderer):
        renderer.skip(record)

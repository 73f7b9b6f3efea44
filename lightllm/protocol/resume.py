"""A stream that breaks off on one server goes on on another: what the servers tell whoever stands between them and the client.

    asked    request with the header `x-lightllm-resumable: 1`
    told     response header `x-lightllm-resume`: an `Identity`, where the answer can go on elsewhere
             before each event a comment of server-sent events: `: {...}` with the `News` that the event tells the client,
             or `: +` where further events belong to the same news: they are passed on together or not at all
    used     `POST /lightllm/resume` on another server with a `Resumption`: the rest of the stream, told in the same way

The comments are for the controller; it takes them out.
"""

from __future__ import annotations

import msgspec

from lightllm.protocol.messages import Finish

ROUTE = "/lightllm/resume"
ASKS = b"x-lightllm-resumable"
TELLS = "x-lightllm-resume"
_MORE = b": +\n"
_NEWS = b": "


class Identity(msgspec.Struct, frozen=True):
    """What chunks of the same answer have in common."""

    id: str
    created: int
    """Seconds since 1970."""
    seed: int


class News(msgspec.Struct):
    """What one choice has got: parallel lists, one entry a token."""

    choice: int
    token_ids: list[int] = []
    texts: list[str] = []
    logprobs: list[float] = []
    cached_tokens: int = 0
    finish: Finish | None = None

    def add(self, later: News) -> None:
        self.token_ids += later.token_ids
        self.texts += later.texts
        self.logprobs += later.logprobs
        self.cached_tokens = later.cached_tokens
        self.finish = later.finish


class Resumption(msgspec.Struct):
    """A request, and how far its answer had come."""

    path: str
    body: msgspec.Raw
    identity: Identity
    choices: list[News]
    """Of each choice that has something, all of it."""


_news = msgspec.json.Decoder(list[News])


def mark(events: list[bytes], news: list[News]) -> list[bytes]:
    """The events with their comments; at least one."""
    *others, last = events
    return [*(_MORE + event for event in others), _NEWS + msgspec.json.encode(news) + b"\n" + last]


def unmark(event: bytes) -> tuple[bytes, list[News] | None]:
    """The event as clients get it, and its news; None: it is to be held until an event with news comes, or, where there is no
    comment at all, `[]`: it tells nothing of the kind."""
    if event.startswith(_MORE):
        return event[len(_MORE) :], None
    if not event.startswith(b": ["):
        return event, []
    comment, _, rest = event.partition(b"\n")
    return rest, _news.decode(comment[len(_NEWS) :])

"""Random conversations of strangers with an HTTP server, as bytes on a connection, and what may come back.

`case(rng)` is a request with a body of `hostile_bodies`, or one that is odd as HTTP: framing that servers may understand in
different ways, odd hosts and headers, many requests at once, in small parts, cut short, or left by its client.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from support.hostile_bodies import Dice, body

GOOD = b'{"text": "What is AI?"}'


@dataclasses.dataclass(frozen=True)
class Case:
    kind: str
    parts: tuple[bytes, ...]
    pause: float = 0.0
    """Seconds between parts."""
    leaves_after: int | None = None
    """Bytes of the answer after which the client leaves; None: it reads all, after the end of what it sends."""
    answers: int | None = None
    """How many answers there are, where that is known."""
    refused: bool = False
    """The first answer is a 4xx or 501, and the last."""


@dataclasses.dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def request(
    path: bytes, content: bytes, *headers: bytes, method: bytes = b"POST", version: bytes = b"1.1"
) -> bytes:
    lines = [
        b"%b %b HTTP/%b" % (method, path, version),
        b"Host: x",
        b"Content-Length: %d" % len(content),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


def case(rng: Dice) -> Case:
    kinds = (_plain, _framing, _chunks, _pipeline, _parts, _head, _host, _left)
    return rng.choices(kinds, (60, 6, 6, 4, 6, 8, 4, 6))[0](rng)


def _plain(rng: Dice) -> Case:
    path, content = body(rng)
    return Case("body", (request(path.encode(), content, b"Content-Type: application/json"),), answers=1)


AMBIGUOUS = (
    (b"Content-Length: 5", b"Transfer-Encoding: chunked"), (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    (b"Content-Length: 5", b"Content-Length: 6"), (b"Content-Length: 5, 6",), (b"Content-Length: +5",), (b"Content-Length: -1",),
    (b"Content-Length: 0x5",), (b"Content-Length: 5 5",), (b"Content-Length: 1" + b"0" * 30,), (b"Content-Length : 5",),
    (b"Transfer-Encoding: xchunked",), (b"Transfer-Encoding: chunked, identity",), (b"Transfer-Encoding: gzip, chunked",),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"), (b"Transfer-Encoding : chunked",),
    (b"Transfer-Encoding:\x0bchunked",), (b"Transfer-Encoding: \"chunked\"",), (b"X: y\rContent-Length: 5",),
    (b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 5"), (b" Content-Length: 5",), (b"Content-Length: 5\0",),
)  # fmt: skip
"""Headers of a body that one server in a chain may read in another way than the next."""


def _framing(rng: Dice) -> Case:
    head = b"\r\n".join((b"POST /tokens HTTP/1.1", b"Host: x", *rng.choice(AMBIGUOUS)))
    content = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    return Case("framing", (head + b"\r\n\r\n" + content,), answers=1, refused=True)


def _chunks(rng: Dice) -> Case:
    size = b"%x" % len(GOOD)
    forms = (
        (size + b"\r\n" + GOOD + b"\r\n0\r\n\r\n", False), (size + b";a=b\r\n" + GOOD + b"\r\n0\r\nX: y\r\n\r\n", False),
        (b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n", False), (b"000" + size + b"\r\n" + GOOD + b"\r\n0\r\n\r\n", False),
        (size + b"\n" + GOOD + b"\n0\n\n", True), (b"-1\r\n", True), (b"0x5\r\nhello\r\n0\r\n\r\n", True), (b"5\r\nhelloX", True),
        (b"f" * 17 + b"\r\n", True), (b"\r\n0\r\n\r\n", True), (size + b"\r\n" + GOOD + b"0\r\n\r\n", True), (b" 5\r\nhello\r\n0\r\n\r\n", True),
        (b"5;" + b"a" * 20_000 + b"\r\nhello\r\n0\r\n\r\n", True), (b"0\r\n" + b"X: y\r\n" * 9000 + b"\r\n", True),
    )  # fmt: skip
    content, refused = rng.choice(forms)
    head = b"POST /tokens HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return Case("chunks", (head + content,), answers=1, refused=refused)


def _pipeline(rng: Dice) -> Case:
    requests = []
    for _ in range(rng.randint(2, 12)):
        path, content = body(rng)
        requests.append(request(path.encode(), content) if rng.random() < 0.5 else request(b"/tokens", GOOD))
    requests = [one for one in requests if len(one) < 60_000]
    return Case("pipeline", (b"".join(requests),))


def _parts(rng: Dice) -> Case:
    """Few bytes at a time."""
    path, content = body(rng)
    sent = request(path.encode(), content[:5000])
    cuts = sorted(rng.sample(range(1, len(sent)), min(len(sent) - 1, rng.randint(1, 8))))
    parts = tuple(sent[start:end] for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True))
    return Case("parts", parts, pause=rng.choice((0.0, 0.001, 0.02)), answers=1)


def _head(rng: Dice) -> Case:
    method = rng.choice(
        (
            b"GET",
            b"PUT",
            b"DELETE",
            b"OPTIONS",
            b"TRACE",
            b"PATCH",
            b"BREW",
            b"get",
            b"PRI",
            b"CONNECT",
            b"G\0T",
        )
    )
    path = rng.choice(
        (b"/", b"*", b"/%00", b"/%2e%2e/%2e%2e/etc/passwd", b"/v1/models/" + b"a" * 9000, b"/generate/", b"//generate", b"/" + b"/a" * 4000,
         b"http://x/health", b"http://[", b"/health?" + b"a=b&" * 2000, b"/v1/models/%ff%fe", b"/metrics;x", b"/\xc3\x9f", b"/a b", b"")
    )  # fmt: skip
    version = rng.choice(
        (
            b"HTTP/1.1",
            b"HTTP/1.1",
            b"HTTP/1.0",
            b"HTTP/2.0",
            b"HTTP/0.9",
            b"HTTP/1.2",
            b"HTTP/11",
            b"",
            b"RTSP/1.0",
        )
    )
    extra = rng.choice(
        (b"", b"X: " + b"y" * 40_000, b"X: y\r\n" * 250, b"X: y\r\n folded\r\n", b": y\r\n", b"X\0: y\r\n", b"X: \x01\r\n", b"X: \xff\xfe\r\n",
         b"Expect: 100-continue\r\n", b"Expect: 200-maybe\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Connection: close, keep-alive\r\n",
         b"X-Request-Id: a\tb\r\n", b"X-Request-Id: " + b"i" * 2000 + b"\r\n", b"Authorization: Bearer " + b"k" * 20_000 + b"\r\n",
         b"Accept-Encoding: gzip\r\n", b"Range: bytes=0-5,1-6\r\n", b"Content-Encoding: gzip\r\n", b"Forwarded: for=_x;host=y\r\n",
         b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n", b"Cookie: " + b"a=b; " * 500 + b"\r\n")
    )  # fmt: skip
    end = b"" if extra.endswith(b"\r\n") or not extra else b"\r\n"
    return Case("head", (b"%b %b %b\r\nHost: x\r\n%b%b\r\n" % (method, path, version, extra, end),))


HOSTS = (
    b"", b"Host:\r\n", b"Host: a\r\nHost: b\r\n", b"Host: evil.example\r\n", b"Host: x/health?\r\n", b"Host: x@evil.example\r\n",
    b"Host: localhost:99999\r\n", b"Host: [::1\r\n", b"Host: 127.0.0.1\x00\r\n", b"Host: \xff\r\n", b"Host: " + b"a" * 9000 + b"\r\n",
    b"Host: x\r\nOrigin: https://evil.example\r\n", b"Host: x\r\nOrigin: http://[\r\n", b"Host: x\r\nOrigin: null\r\n", b"Host : x\r\n",
    b"Host: x\r\nContent-Type: text/plain\r\n", b"Host: x\r\nReferer: \xf0\r\n",
)  # fmt: skip


def _host(rng: Dice) -> Case:
    head = b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n" % (
        rng.choice((b"/tokens", b"/v1/completions")),
        len(GOOD),
    )
    return Case("host", (head + rng.choice(HOSTS) + b"\r\n" + GOOD,), answers=1)


def _left(rng: Dice) -> Case:
    """The client leaves: before its request is complete, while it is answered, or without reading."""
    path, content = rng.choice(
        (
            body(rng),
            ("/generate_stream", b'{"inputs":"x","parameters":{"max_new_tokens":200,"ignore_eos":true}}'),
        )
    )
    sent = request(path.encode(), content)
    if rng.random() < 0.4:
        return Case("cut", (sent[: rng.randrange(1, len(sent))],), leaves_after=0)
    return Case("left", (sent,), leaves_after=rng.choice((0, 1, 300, 2000)))


# -- what comes back


def parse_answers(data: bytes, head: bool = False) -> list[Answer]:
    """All answers on a connection that has ended, without interim ones. head: the bodies are left out. Raises `ValueError`."""
    answers = []
    while data:
        lines, found, data = data.partition(b"\r\n\r\n")
        first, *rest = lines.split(b"\r\n")
        told = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z' -]*", first)
        if told is None or not found:
            raise ValueError(f"no answer: {(lines + found)[:200]!r}")
        status = int(told[1])
        if status < 200:
            continue
        headers = dict(line.split(b": ", 1) for line in rest)
        content = b""
        if head or status in (204, 304):
            pass
        elif b"transfer-encoding" in headers:
            content, data = _chunked(data)
        elif b"content-length" in headers:
            length = int(headers[b"content-length"])
            content, data = data[:length], data[length:]
            if len(content) < length:
                raise ValueError("the body was cut short")
        else:
            content, data = data, b""
        answers.append(Answer(status, headers, content))
    return answers


def _chunked(data: bytes) -> tuple[bytes, bytes]:
    content = []
    while True:
        size, found, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not found or data[length : length + 2] != b"\r\n":
            raise ValueError(f"a chunk of {length} bytes was cut short")
        content.append(data[:length])
        data = data[length + 2 :]
        if not length:
            return b"".join(content), data


_TELLS_TOO_MUCH = re.compile(rb"Traceback|object at 0x|\.py\b|site-packages|pydantic\.dev|/lightllm-")
_DEFECT = re.compile(rb'"(internal_error|backend_failed)"')


def problem_of(case: Case, answers: list[Answer]) -> str:
    """What is wrong with the answers; "" if nothing is."""
    if case.answers is not None and len(answers) != case.answers:
        return f"{len(answers)} answers instead of {case.answers}"
    if case.refused and not (400 <= answers[0].status < 500 or answers[0].status == 501):
        return f"{answers[0].status} instead of a refusal"
    if case.refused and answers[0].headers.get(b"connection") != b"close":
        return "the connection may be used again"
    for answer in answers:
        if answer.status >= 500 and answer.status not in (
            (503, 501) if b"ransfer-" in case.parts[0] else (503,)
        ):
            return f"status {answer.status}"
        if answer.status == 503 and b"retry-after" not in answer.headers:
            return "503 without Retry-After"
        if _DEFECT.search(answer.body) or (answer.status >= 400 and _TELLS_TOO_MUCH.search(answer.body)):
            return "the error of a defect"
        if wrong := _wrong_json(answer):
            return wrong
    return ""


def _wrong_json(answer: Answer) -> str:
    kind = answer.headers.get(b"content-type", b"")
    lines: list[bytes] = []
    if kind.startswith(b"application/json"):
        lines = [answer.body]
    elif kind.startswith(b"text/event-stream"):
        lines = [line[5:] for line in answer.body.split(b"\n") if line.startswith(b"data:")]
    try:
        for line in lines:
            if line.strip() != b"[DONE]":
                json.loads(line, parse_constant=_no_json)
    except ValueError as error:
        return f"no JSON: {error}"
    return ""


def _no_json(text: str) -> Any:
    raise ValueError(f"{text} in an answer")

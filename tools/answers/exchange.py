"""One exchange over a socket of its own: bytes out, all bytes of the answers in, and what differs from run to run replaced.

A recorded answer holds its status line and headers in the order in which they came, and the body. A chunked body is written
with its frames, a line `[chunk]` before each, because one event of a stream is one chunk.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

TIMEOUT_SECONDS = 60.0
_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
_INDEX = re.compile(rb'"choices":\[\{"index":(\d+)')

_VOLATILE: list[tuple[re.Pattern[bytes], bytes]] = [
    (re.compile(rb"(?mi)^date: [^\r\n]*"), b"date: DATE"),
    (re.compile(rb"(?mi)^x-request-id: [0-9a-f]{32}(?=\r?$)"), b"x-request-id: ID"),
    (re.compile(rb'"(chatcmpl|cmpl)-[0-9a-f]{24}"'), rb'"\1-ID"'),
    (re.compile(rb'"created":\d{10}'), b'"created":TIME'),
    (re.compile(rb"error id [0-9a-f]{12}"), b"error id ID"),
    (re.compile(rb"127\.0\.0\.1:\d+"), b"127.0.0.1:PORT"),
]
_METRIC_VALUE = re.compile(rb"(?m)^(lightllm\w*(?:\{[^}\n]*\})?) \S+$")
_CACHED = re.compile(rb'"cached_tokens":\d+')
_LENGTH = re.compile(rb"(?mi)^content-length: \d+")


@dataclass(frozen=True)
class Case:
    """One entry of the catalogue."""

    name: str
    request: bytes
    answers: int = 1
    """Complete answers that are waited for; 0: everything up to the end of the connection."""
    streamed: bool = False
    """Tokens that come close together share an event: of several attempts the one with the most events is kept."""
    several: bool = False
    """Several choices, whose order in a stream depends on time, as does what one has of another's cached prompt: events are sorted
    by choice, the number of cached tokens is replaced."""
    head: bool = False
    """The answer has no body, whatever its headers say."""


@dataclass(frozen=True)
class Answer:
    head: bytes
    chunks: tuple[bytes, ...] | None
    """None: the body was not chunked."""
    body: bytes


def exchange(port: int, case: Case) -> list[Answer]:
    """Sends a case to a server on this machine. Raises `TimeoutError` if an answer does not come to its end."""
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as connection:
        connection.sendall(case.request)
        reader = _Reader(connection)
        answers: list[Answer] = []
        while not case.answers or len(answers) < case.answers:
            answer = reader.answer(case.head)
            if answer is None:
                break
            answers.append(answer)
        return answers


def recorded(answers: list[Answer], case: Case) -> bytes:
    """The answers as they are compared."""
    return b"\n".join(_recorded(answer, case) for answer in answers)


def _recorded(answer: Answer, case: Case) -> bytes:
    if answer.chunks is None:
        body = answer.body
    else:
        chunks = list(answer.chunks)
        if case.several:
            chunks.sort(key=_choice)
        body = b"".join(b"[chunk]\n" + chunk + b"\n" for chunk in chunks)
    text = answer.head + b"\n" + body
    for pattern, replacement in _VOLATILE:
        text = pattern.sub(replacement, text)
    if b"/metrics " in case.request:
        text = _LENGTH.sub(b"content-length: N", _METRIC_VALUE.sub(rb"\1 VALUE", text))
    if case.several:
        text = _LENGTH.sub(b"content-length: N", _CACHED.sub(b'"cached_tokens":N', text))
    return text.replace(b"\r\n", b"\n")


def _choice(chunk: bytes) -> int:
    """Number of the choice that an event belongs to; what belongs to none comes last, in its order."""
    found = _INDEX.search(chunk)
    return int(found[1]) if found else 1 << 30


class _Reader:
    """Splits what comes into answers, strictly: whatever is no HTTP raises."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""

    def answer(self, no_body: bool) -> Answer | None:
        """The next answer; None at the end of the connection."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            return None
        status = _STATUS.match(head)
        if status is None:
            raise ValueError(f"no status line: {head[:80]!r}")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:] if line)
        }
        if no_body or status[1] in (b"100", b"204", b"304"):
            return Answer(head, None, b"")
        if b"content-length" in headers:
            return Answer(head, None, self._exactly(int(headers[b"content-length"])))
        if headers.get(b"transfer-encoding") == b"chunked":
            return Answer(head, tuple(self._chunks()), b"")
        return Answer(head, None, self._rest())

    def _chunks(self) -> list[bytes]:
        chunks: list[bytes] = []
        while True:
            line = self._until(b"\r\n")
            if line is None:
                raise ValueError("the connection ended within a chunked body")
            size = int(line, 16)
            chunk = self._exactly(size + 2)
            if not size:
                return chunks
            chunks.append(chunk[:-2])

    def _until(self, end: bytes) -> bytes | None:
        while end not in self._data:
            if not self._more():
                if self._data:
                    raise ValueError(f"the connection ended within {self._data[:80]!r}")
                return None
        found, _, self._data = self._data.partition(end)
        return found + end

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            if not self._more():
                raise ValueError(f"the connection ended {size - len(self._data)} bytes too early")
        found, self._data = self._data[:size], self._data[size:]
        return found

    def _rest(self) -> bytes:
        while self._more():
            pass
        found, self._data = self._data, b""
        return found

    def _more(self) -> bool:
        data = self._connection.recv(1 << 16)
        self._data += data
        return bool(data)

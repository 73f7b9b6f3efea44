"""A tiny streaming server with known timing, to test the benchmark client against: both APIs, and every way to fail."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import itertools
import json
import threading
import time
from collections.abc import Iterator

FIRST_TOKEN = 0.05
BETWEEN_TOKENS = 0.01


class FakeServer:
    """Answers POSTs with `max_new_tokens` / `max_tokens` events. `misbehave` is applied to every request."""

    def __init__(self, misbehave: str = "") -> None:
        self.misbehave = misbehave
        self.bodies: list[dict[str, object]] = []
        self.paths: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self.port = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeServer]:
        """Serves from a thread of its own on a free port."""
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._answer, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        thread = threading.Thread(target=loop.run_forever, name="fake-server")
        thread.start()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split("\r\n")[0].split(" ")
        self.paths.append(path)
        length = next(
            (int(line.split(":")[1]) for line in head.split("\r\n") if line.startswith("Content-Length")), 0
        )
        if method == "GET":
            _respond(writer, 200, json.dumps({"data": [{"id": "fake"}]}))
        else:
            body = json.loads(await reader.readexactly(length))
            self.bodies.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            if self.misbehave == "busy":
                _respond(
                    writer, 503, json.dumps({"message": "the waiting list is full"}), "Retry-After: 7\r\n"
                )
            else:
                await self._stream(writer, path, body)
            self._at_once -= 1
        writer.close()

    async def _stream(self, writer: asyncio.StreamWriter, path: str, body: dict[str, object]) -> None:
        native = path == "/generate_stream"
        events = list(native_events(body) if native else openai_events(body))
        framing = "data:" if native else "data: "
        if self.misbehave == "close-delimited":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await asyncio.sleep(FIRST_TOKEN)
        for number, event in enumerate(events):
            if self.misbehave == "cut" and number == 2:
                return
            if self.misbehave == "error" and number == 2:
                event = json.dumps({"error": {"message": "backend failed"}})
            data = f"{framing}{event}\n\n".encode()
            if self.misbehave == "crlf":
                data = b": a comment\r\n\r\n" + data.replace(b"\n", b"\r\n")
            if self.misbehave == "close-delimited":
                writer.write(data)
            else:
                # Half events: what arrives together need not belong together.
                for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                    writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                    await writer.drain()
            await asyncio.sleep(BETWEEN_TOKENS)
        if self.misbehave != "close-delimited":
            writer.write(b"0\r\n\r\n")
        await writer.drain()


def native_events(body: dict[str, object]) -> Iterator[str]:
    count = body["parameters"]["max_new_tokens"]  # type: ignore[index]
    for index in range(1, count + 1):
        token = {"id": 5, "text": "é", "count_output_tokens": index, "prompt_tokens": len(body["inputs"])}  # type: ignore[arg-type]
        last = index == count
        yield json.dumps({"token": token, "generated_text": None, "finished": last,
                          "finish_reason": "length" if last else None, "details": None}, ensure_ascii=False)  # fmt: skip


def openai_events(body: dict[str, object]) -> Iterator[str]:
    count: int = body["max_tokens"]  # type: ignore[assignment]
    for index in range(1, count + 1):
        choice = {"text": "x", "index": 0, "finish_reason": "length" if index == count else None}
        yield json.dumps({"id": "c", "choices": [choice], "usage": None})
    usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}  # type: ignore[arg-type]
    yield json.dumps({"id": "c", "choices": [], "usage": usage})
    yield "[DONE]"


def _respond(writer: asyncio.StreamWriter, status: int, body: str, more: str = "") -> None:
    head = (
        f"HTTP/1.1 {status} X\r\n{more}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body.encode())


class ReasoningServer:
    """`/v1/models` and a streamed `/v1/chat/completions` that reasons before it answers; or, endless, one that does not end."""

    def __init__(self, endless: bool = False) -> None:
        self.port = 0
        self._endless = endless

    @contextlib.contextmanager
    def running(self) -> Iterator[ReasoningServer]:
        endless = self._endless

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._begin()
                self.wfile.write(json.dumps({"data": [{"id": "thinker"}]}).encode())

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._begin()
                with contextlib.suppress(OSError):  # the client has left
                    for event in endless_events() if endless else reasoning_events():
                        self.wfile.write(f"data: {event}\n\n".encode())
                        time.sleep(BETWEEN_TOKENS)

            def _begin(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None: ...

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            self.port = server.server_address[1]
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def reasoning_events() -> Iterator[str]:
    for kind, text in (
        ("reasoning_content", "Let me think"),
        ("content", "It is **bo"),
        ("content", "ld**. \x1b]0;title\x07"),
    ):
        yield json.dumps({"choices": [{"delta": {kind: text}}]})
    yield json.dumps({"choices": [], "usage": {"completion_tokens": 6}})
    yield "[DONE]"


def endless_events() -> Iterator[str]:
    for number in itertools.count(1):
        yield json.dumps({"choices": [{"delta": {"content": f"word {number} "}}]})

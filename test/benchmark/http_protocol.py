"""What the HTTP protocol costs a request and a streamed token: the connection with a transport that drops everything, before
an application that reads the body and answers. The least of many short runs, so that other processes matter little.

python test/benchmark/http_protocol.py             ours
python test/benchmark/http_protocol.py --uvicorn   uvicorn's, which has no limits
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from lightllm.http.http_protocol import BoundedHttpProtocol

BODY = b'{"model": "x", "messages": [{"role": "user", "content": "What is AI?"}], "stream": true, "max_tokens": 99}'
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
    b"Connection: keep-alive\r\nUser-Agent: python-httpx/0.28.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
EVENT = b"data: %b\n\n" % (b"x" * 180)
TOKENS = 200
RUNS = 100


class DroppingTransport:
    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None: ...
    def close(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    abort = close


class Application:
    """Answers each request with `tokens` events; `answered` is set afterwards."""

    def __init__(self, tokens: int) -> None:
        self.answered = asyncio.Event()
        self._tokens = tokens

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        headers = [(b"content-type", b"text/event-stream"), (b"x-request-id", b"0" * 32)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(self._tokens):
            await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.answered.set()


async def seconds(protocol_class: Any, tokens: int, parts: tuple[bytes, ...], requests: int) -> float:
    """The least that one request took."""
    application = Application(tokens)
    config = uvicorn.Config(application, interface="asgi3", ws="none", log_config=None, access_log=False)
    config.load()
    protocol = protocol_class(config, ServerState(), {}, _loop=asyncio.get_running_loop())
    protocol.connection_made(DroppingTransport())
    best = float("inf")
    for _ in range(RUNS):
        start = time.perf_counter()
        for _ in range(requests):
            application.answered.clear()
            for part in parts:
                protocol.data_received(part)
            await application.answered.wait()
        best = min(best, (time.perf_counter() - start) / requests)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uvicorn", action="store_true", help="measure uvicorn's protocol")
    protocol_class = HttpToolsProtocol if parser.parse_args().uvicorn else BoundedHttpProtocol
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        one = runner.run(seconds(protocol_class, 0, (HEAD + BODY,), 50))
        two = runner.run(seconds(protocol_class, 0, (HEAD, BODY), 50))
        stream = runner.run(seconds(protocol_class, TOKENS, (HEAD + BODY,), 4))
    print(f"request in one piece   {one * 1e6:6.1f} µs")
    print(f"request in two pieces  {two * 1e6:6.1f} µs")
    print(f"token                  {(stream - one) / TOKENS * 1e6:6.2f} µs")


if __name__ == "__main__":
    main()

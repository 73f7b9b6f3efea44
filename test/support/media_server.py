"""A server of images on 127.0.0.1 for tests, with every misbehaviour that raw bytes can show."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from lightllm.images.addresses import Address
from lightllm.images.fetch import Fetcher
from lightllm.images.limits import ImageLimits

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
LOCAL = "127.0.0.1"
LIMITS = ImageLimits(
    max_bytes=100_000,
    max_pixels=1_000_000,
    max_images=8,
    fetch_timeout=20.0,
    allowed_domains=None,
    local_path=None,
)


def response(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str) -> bytes:
    return response(b"", "302 Found", f"Location: {location}")


async def endless_drip(writer: asyncio.StreamWriter) -> None:
    """An answer that never ends, byte by byte."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


class MediaServer:
    """`answers`: path -> what is sent. `requests`: the heads that came. `left`: set when a client closed before the answer's end."""

    def __init__(self, port: int, answers: dict[str, Answer]) -> None:
        self.port = port
        self.answers = answers
        self.requests: list[str] = []
        self.left = asyncio.Event()

    def url(self, path: str = "/", host: str = "images.example", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(head)
            answer = self.answers[head.split()[1]]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def media_server(
    answers: dict[str, Answer], ssl_context: ssl.SSLContext | None = None
) -> AsyncIterator[MediaServer]:
    server = MediaServer(0, answers)
    listening = await asyncio.start_server(server.answer, LOCAL, 0, ssl=ssl_context)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


class Names:
    """A resolver: `images.example` and all below it are 127.0.0.1, the rest is what the test says. `asked`: every question."""

    def __init__(self, **others: list[str]) -> None:
        self.others = {name.replace("_", "."): addresses for name, addresses in others.items()}
        self.asked: list[str] = []

    async def __call__(self, name: str, port: int) -> list[str]:
        self.asked.append(name)
        if name in self.others:
            return self.others[name]
        if name == "images.example" or name.endswith(".images.example"):
            return [LOCAL]
        raise OSError(f"no {name}")


def only_local(address: Address) -> bool:
    """The test's server stands for the public internet; nothing else is permitted."""
    return address == ipaddress.ip_address(LOCAL)


def local_fetcher(
    limits: ImageLimits = LIMITS, names: Names | None = None, **more: ssl.SSLContext
) -> Fetcher:
    return Fetcher(limits, names or Names(), only_local, **more)

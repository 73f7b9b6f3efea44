"""uvicorn's HTTP protocol with a limit on headers, and with a way to drop a connection that no longer reads."""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lightllm.httpserver.boundary import ABORT_CONNECTION

MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 200


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses requests whose line and headers exceed the limits (llhttp itself has none)."""

    _header_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self.scope[ABORT_CONNECTION] = self.transport.abort  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            raise ValueError("request headers are too large")

"""The bytes of HTTP/1 requests, with a limit on everything that a stranger may send.

httptools (llhttp) judges every byte, but knows no limits: it joins the pieces of a header that is not complete and reports
complete ones only. So it gets its input in pieces that end where a head, a body or a request ends: what it holds is
counted before, and never more than one request is parsed ahead. Nothing here touches a socket.
"""

from __future__ import annotations

import urllib.parse

import httptools

from lightllm.errors import HeadersTooLarge, MalformedRequest, UnsupportedTransferCoding

MAX_HEAD_BYTES = 32 * 1024
"""Request line and headers, on the wire."""
MAX_HEADERS = 200
MAX_EMPTY_BYTES = 16
"""Line breaks before a request: old clients send one behind a body."""
PIECE = 4096
"""Bytes of a chunked body that are parsed at once."""
MAX_FRAMING_BYTES = 16 * 1024
"""Chunk sizes, chunk extensions and trailers of a body, beyond `FRAMING_PER_BYTE` bytes for each byte of the body itself
(a chunk of one byte needs five)."""
FRAMING_PER_BYTE = 16

_EMPTY_LINE = b"\r\n\r\n"


class RequestParser:
    """Parses one request after the other. `feed` until `complete`, then `next_request`.

    Of a request whose `head_complete`: `method`, `version` ("1.0" or "1.1"), `headers` (lower-case names; trailers are
    dropped), `path` (unquoted), `raw_path`, `query`, `keep_alive`, `expects_continue`. `parts` takes its body.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        """What has come of the body and was not taken yet."""
        self.method = self.version = self.path = ""
        self.raw_path = self.query = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.keep_alive = self.expects_continue = False
        self._url = b""
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.next_request()

    def next_request(self) -> None:
        """Forgets the request that is complete; what is fed next begins another one."""
        self.head_complete = self.complete = False
        self.path = ""
        self.body_bytes = 0
        self._begun = False
        self._wire_bytes = 0
        """Of the head, then of what frames a chunked body."""
        self._length: int | None = None
        """Bytes of the body that have not come; None: it is chunked."""
        self._tail = b""
        """The last bytes of the piece before, where an empty line may have begun."""

    def close(self) -> None:
        """Ends the cycle of references with the parser."""
        self._parser = None

    def take_body(self) -> bytes:
        """What has come of the body since the last call."""
        parts = self.parts
        self.parts = []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed(self, data: bytes, start: int) -> int:
        """Parses one piece of `data` from `start` on; returns its end. Raises `RequestError`: the connection is lost."""
        if not self.head_complete:
            end = self._piece_end(data, start, MAX_HEAD_BYTES + 1 - self._wire_bytes)
            self._wire_bytes += end - start
            self._execute(data, start, end)
            if self.head_complete:
                self._wire_bytes = 0
                self._check_head()
            elif not self._begun and self._wire_bytes > MAX_EMPTY_BYTES:
                raise MalformedRequest("there are empty lines in the place of a request")
            elif self._wire_bytes > MAX_HEAD_BYTES:
                raise HeadersTooLarge(f"request line and headers are larger than {MAX_HEAD_BYTES} bytes")
        elif self._length is not None:
            end = min(len(data), start + self._length)
            self._length -= end - start
            self._execute(data, start, end)
        else:
            end = self._piece_end(data, start, PIECE)
            before = self.body_bytes
            self._execute(data, start, end)
            body = self.body_bytes - before
            framing = end - start - body
            self._wire_bytes = max(0, self._wire_bytes + framing - FRAMING_PER_BYTE * body)
            if self._wire_bytes > MAX_FRAMING_BYTES:
                raise HeadersTooLarge(
                    f"chunk extensions and trailers are larger than {MAX_FRAMING_BYTES} bytes"
                )
        return end

    def _piece_end(self, data: bytes, start: int, size: int) -> int:
        """Behind the next empty line, with which a head and a chunked body end, but at most `size` bytes on."""
        stop = min(len(data), start + size)
        if self._tail:
            seam = (self._tail + data[start : min(stop, start + 3)]).find(_EMPTY_LINE)
            if seam >= 0:
                end = start + seam + len(_EMPTY_LINE) - len(self._tail)
                self._tail = b""
                return end
        found = data.find(_EMPTY_LINE, start, stop)
        if found >= 0:
            self._tail = b""
            return found + len(_EMPTY_LINE)
        self._tail = (self._tail + data[max(start, stop - 3) : stop])[-3:]
        return stop

    def _execute(self, data: bytes, start: int, end: int) -> None:
        assert self._parser is not None
        try:
            self._parser.feed_data(data if end - start == len(data) else memoryview(data)[start:end])
        except httptools.HttpParserUpgrade:
            self._parse_without_upgrade()
        except httptools.HttpParserError as error:
            raise MalformedRequest(f"this is no valid HTTP request: {error}") from error

    def _parse_without_upgrade(self) -> None:
        """An offer to upgrade is ignored (RFC 9110, 7.8). The parser would take what follows the head for another
        protocol, where Java's client, which offers HTTP/2 with every request, has sent its body; so the head is parsed
        once more, without the offer."""
        if self.method == "CONNECT":
            raise MalformedRequest("this is no proxy")
        lines = [b"%b %b HTTP/%b" % (self.method.encode(), self._url, self.version.encode())]
        for name, value in self.headers:
            if name == b"connection":
                value = b"close" if b"close" in value.lower() else b"keep-alive"
            if name not in (b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        self._parser = httptools.HttpRequestParser(self)
        self._begun = self.head_complete = self.complete = False
        head = b"\r\n".join(lines) + _EMPTY_LINE
        self._execute(head, 0, len(head))

    def _check_head(self) -> None:
        """Raises what llhttp lets pass."""
        if self.version not in ("1.0", "1.1"):
            raise MalformedRequest(f"HTTP/{self.version} is not supported, HTTP/1.1 is")
        if len(self.headers) > MAX_HEADERS:
            raise HeadersTooLarge(
                f"{len(self.headers)} headers are more than the {MAX_HEADERS} that are taken"
            )
        hosts = 0
        self.expects_continue = False
        self._length = 0
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                self._length = int(value)
            elif name == b"transfer-encoding":
                self._check_coding(value)
                self._length = None
            elif name == b"expect" and value.lower() == b"100-continue":
                self.expects_continue = self.version == "1.1"
        if hosts > 1 or (hosts == 0 and self.version == "1.1"):
            raise MalformedRequest("an HTTP/1.1 request needs one Host header" + " only" * (hosts > 1))
        self._split_url()

    def _check_coding(self, value: bytes) -> None:
        if self.version == "1.0":
            raise MalformedRequest("HTTP/1.0 knows no Transfer-Encoding")
        if value.strip().lower() != b"chunked":
            raise UnsupportedTransferCoding("Transfer-Encoding: the only one that is supported is chunked")

    def _split_url(self) -> None:
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserError as error:
            raise MalformedRequest("this is no valid HTTP request: invalid URL") from error
        self.raw_path = url.path or b"/"
        self.query = url.query or b""
        path = self.raw_path.decode("ascii")
        self.path = urllib.parse.unquote(path) if "%" in path else path

    # What httptools calls. Its errors are raised by `feed`, not here: they would be wrapped.

    def on_message_begin(self) -> None:
        if self._begun:
            raise ValueError("a piece reached into the next request")  # only with a version that is refused
        self._begun = True
        self._url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_complete:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self._parser
        assert parser is not None
        self.head_complete = True
        self.method = parser.get_method().decode("ascii")
        self.version = parser.get_http_version()
        self.keep_alive = self.version == "1.1" and parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self.body_bytes += len(body)
        self.parts.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

"""The parser of requests: the same requests whatever the pieces they come in, and a bound on everything that is no body."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.errors import HeadersTooLarge, MalformedRequest, RequestError, UnsupportedTransferCoding
from lightllm.http.request_parser import MAX_EMPTY_BYTES, MAX_FRAMING_BYTES, MAX_HEAD_BYTES, RequestParser

CHUNKED = b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUESTS = [
    b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\n\r\n\r\nhello\r\n",
    CHUNKED + b"7\r\nhe\r\n\r\nl\r\n2;e=1\r\nlo\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
    CHUNKED + b"1\r\na\r\n" * 50 + b"0\r\n\r\n",
    b"\r\nHEAD /%2fc HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /d HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
]
SEEN = [
    ("GET", "/a", b"b=c", b""),
    ("POST", "/b", b"", b"\r\n\r\nhello\r\n"),
    ("POST", "/x", b"", b"he\r\n\r\nllo"),
    ("POST", "/x", b"", b"a" * 50),
    ("HEAD", "//c", b"", b""),
    ("POST", "/d", b"", b"hi"),
]


def parse(pieces: Iterator[bytes] | list[bytes]) -> list[tuple[str, str, bytes, bytes]]:
    """Method, path, query and body of each request."""
    parser, seen = RequestParser(), []
    for piece in pieces:
        at = 0
        while at < len(piece):
            at = parser.feed(piece, at)
            if parser.complete:
                seen.append((parser.method, parser.path, parser.query, parser.take_body()))
                assert b"authorization" not in dict(parser.headers)
                parser.next_request()
    return seen


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_requests_are_the_same_whatever_pieces_they_come_in(data: st.DataObject) -> None:
    order = data.draw(st.lists(st.sampled_from(range(len(REQUESTS))), min_size=1, max_size=5))
    wire = b"".join(REQUESTS[number] for number in order)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(wire) - 1), max_size=30)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)])]
    assert parse(pieces) == [SEEN[number] for number in order]


def test_requests_are_the_same_byte_by_byte() -> None:
    wire = b"".join(REQUESTS)
    assert parse([wire[at : at + 1] for at in range(len(wire))]) == SEEN


def test_nothing_is_parsed_beyond_the_end_of_a_request() -> None:
    parser = RequestParser()
    wire = REQUESTS[0] + REQUESTS[2] + b"nonsense\r\n\r\n"
    at = 0
    for request in (REQUESTS[0], REQUESTS[2]):
        end = at + len(request)
        while not parser.complete:
            at = parser.feed(wire, at)
        assert at == end
        parser.next_request()
    with pytest.raises(MalformedRequest, match="valid HTTP"):
        parser.feed(wire, at)


ENDLESS_HEADS = {
    "method": (b"", b"P"),
    "request line": (b"GET /", b"a"),
    "query": (b"GET /?", b"a=b&"),
    "header name": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X"),
    "header value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"y"),
    "headers": (b"GET / HTTP/1.1\r\n", b"Host: a\r\n"),
    "short headers": (b"GET / HTTP/1.1\r\n", b"a:\r\n"),
    "line breaks": (b"", b"\r\n"),
}
ENDLESS_FRAMING = {
    "trailer name": (b"0\r\nX", b"y"),
    "trailer value": (b"0\r\nX: ", b"y"),
    "trailers": (b"0\r\n", b"X: y\r\n"),
    "chunk extension": (b"5;", b"a"),
    "extensions of many chunks": (b"", b"1;" + b"a" * 100 + b"\r\nx\r\n"),
    "chunk size": (b"", b"0"),
}


@pytest.mark.parametrize("size", [1, 100, 1 << 20], ids=lambda size: f"pieces of {size}")
@pytest.mark.parametrize("name", ENDLESS_HEADS)
def test_an_endless_head_is_refused_at_the_limit(name: str, size: int) -> None:
    start, unit = ENDLESS_HEADS[name]
    consumed = _consumed(RequestParser(), start + unit * (2 * MAX_HEAD_BYTES // len(unit)), size)
    assert consumed <= (MAX_EMPTY_BYTES if name == "line breaks" else MAX_HEAD_BYTES)


@pytest.mark.parametrize("size", [1, 100, 1 << 20], ids=lambda size: f"pieces of {size}")
@pytest.mark.parametrize("name", ENDLESS_FRAMING)
def test_endless_framing_of_a_body_is_refused_at_the_limit(name: str, size: int) -> None:
    start, unit = ENDLESS_FRAMING[name]
    wire = CHUNKED + start + unit * (4 * MAX_FRAMING_BYTES // len(unit))
    assert _consumed(RequestParser(), wire, size) <= len(CHUNKED) + MAX_FRAMING_BYTES * 1.25


def test_a_large_body_does_not_pay_for_large_trailers() -> None:
    body = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    wire = CHUNKED + body * 4 + b"0\r\nX: " + b"y" * (2 * MAX_FRAMING_BYTES)
    assert _consumed(RequestParser(), wire, 1 << 20) <= len(CHUNKED + body * 4) + MAX_FRAMING_BYTES


def _consumed(parser: RequestParser, wire: bytes, size: int) -> int:
    """How many bytes were parsed before the piece with which the parser refused to go on."""
    for start in range(0, len(wire), size):
        piece, at = wire[start : start + size], 0
        while at < len(piece):
            try:
                end = parser.feed(piece, at)
            except RequestError as error:
                assert error.status in (400, 431)
                return start + at
            assert end > at and not parser.complete
            at = end
    raise AssertionError("all of it was taken")


def test_chunks_of_one_byte_are_taken() -> None:
    count = 20_000
    (request,) = parse([CHUNKED + b"1\r\nx\r\n" * count + b"0\r\n\r\n"])
    assert request[3] == b"x" * count


BAD = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "two hosts of HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "line feeds only": b"GET / HTTP/1.1\nHost: a\n\n",
    "length and chunks": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunks and length": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "signed length": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
    "length of 2**64": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551617\r\n\r\n",
    "chunks of HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked twice": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "identity": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n",
    "no chunk size": CHUNKED + b"x\r\n",
    "chunk of another size": CHUNKED + b"1\r\nxx\r\n",
    "tunnel": b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    "URL": b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
def test_what_servers_may_understand_in_different_ways_is_refused(name: str) -> None:
    with pytest.raises((MalformedRequest, UnsupportedTransferCoding)):
        parse([BAD[name]])


@pytest.mark.parametrize("value", [b"gzip, chunked", b"gzip,chunked", b"deflate, gzip, chunked"])
def test_transfer_codings_but_chunked_are_not_implemented(value: bytes) -> None:
    with pytest.raises(UnsupportedTransferCoding):
        parse([b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: %b\r\n\r\n" % value])


def test_too_many_headers_are_refused() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    assert parse([head + b"a:b\r\n" * 199 + b"\r\n"])
    with pytest.raises(HeadersTooLarge, match="201 headers"):
        parse([head + b"a:b\r\n" * 200 + b"\r\n"])

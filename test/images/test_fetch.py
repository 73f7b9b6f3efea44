"""Downloads against servers on 127.0.0.1, which stand for the public internet; the resolver is the tests' own."""

import asyncio
import dataclasses
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from support.media_server import (
    LIMITS,
    Answer,
    MediaServer,
    Names,
    endless_drip,
    local_fetcher,
    media_server,
    only_local,
    redirect,
    response,
)  # fmt: skip

from lightllm.errors import InvalidImage
from lightllm.images.fetch import MAX_REDIRECTS, Fetcher

CERTIFICATE = Path(__file__).parent / "certificates/images.example.pem"
BODY = b"\x89PNG and more" * 100


def fetch(
    answers: dict[str, Answer],
    url: Callable[[MediaServer], str] = lambda server: server.url("/a.png"),
    fetcher: Fetcher | None = None,
) -> tuple[bytes, MediaServer]:
    async def run() -> tuple[bytes, MediaServer]:
        async with media_server(answers) as server:
            return await (fetcher or local_fetcher()).get(url(server), "here"), server

    return asyncio.run(run())


def refused(answers: dict[str, Answer], message: str, **more: object) -> None:
    with pytest.raises(InvalidImage, match=message) as caught:
        fetch(answers, **more)  # type: ignore[arg-type]
    assert caught.value.param == "here" and caught.value.status == 400


def test_the_body_comes_whole_and_the_server_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    body, server = fetch({"/a.png": response(BODY)})
    assert body == BODY
    head = server.requests[0].lower()
    assert f"host: images.example:{server.port}" in head and "accept-encoding: identity" in head
    assert "cookie" not in head and "authorization" not in head


def test_paths_are_sent_as_they_are_meant() -> None:
    wanted = "/a%20b%C3%BC.png?x=1&y=%2F"
    body, server = fetch({wanted: response(BODY)}, lambda server: server.url("/a bü.png?x=1&y=%2F#part"))
    assert body == BODY and server.requests[0].startswith(f"GET {wanted} HTTP/1.1")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://[::1]/", "http://localhost/", "http://0x7f.1/", "http://2130706433/", "http://127.1/",
        "http://0177.0.0.1/", "http://0/", "http://[::ffff:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://169.254.169.254/",
        "http://10.0.0.1/", "http://[fd00::1]/", "http://[fe80::1%25eth0]/", "http://evil.example\\@127.0.0.1/",
        "http://user:secret@8.8.8.8/", "http://8.8.8.8:99999/", "http:///a.png", "http://[::1/", "http://127.0.0.1.:80/",
    ],
)  # fmt: skip
def test_urls_that_lead_into_the_network_of_the_server_are_refused(url: str) -> None:
    fetcher = Fetcher(LIMITS)
    with pytest.raises(InvalidImage, match="^here") as caught:
        asyncio.run(fetcher.get(url, "here"))
    fetcher.close()
    assert caught.value.param == "here" and "download failed" not in caught.value.message


@pytest.mark.parametrize("addresses", [["10.0.0.1"], ["127.0.0.1", "10.0.0.1"], ["::ffff:127.0.0.1"]])
def test_a_name_with_a_private_address_is_refused_and_nothing_is_connected_to(addresses: list[str]) -> None:
    names = Names(rebind_example=addresses)
    refused(
        {},
        "no public address",
        url=lambda server: server.url("/", "rebind.example"),
        fetcher=local_fetcher(names=names),
    )
    assert names.asked == ["rebind.example"]


def test_the_address_that_was_checked_is_the_one_that_is_connected_to() -> None:
    """A second answer of the same name would lead elsewhere: it is not asked for."""
    names = Names()
    body, _ = fetch({"/a.png": response(BODY)}, fetcher=local_fetcher(names=names))
    assert body == BODY and names.asked == ["images.example"]


def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    names = Names(two_example=["127.0.0.2", "127.0.0.1"])
    fetcher = Fetcher(LIMITS, names, lambda address: str(address).startswith("127.0.0."))
    body, _ = fetch({"/": response(BODY)}, lambda server: server.url("/", "two.example"), fetcher)
    assert body == BODY


def test_redirects_are_followed_and_each_is_checked() -> None:
    names = Names()
    answers: dict[str, Answer] = {
        "/a.png": redirect("b.png"),
        "/b.png": redirect("/c/d.png"),
        "/c/d.png": response(BODY),
    }
    body, server = fetch(answers, fetcher=local_fetcher(names=names))
    assert body == BODY and len(server.requests) == 3 and names.asked == ["images.example"] * 3


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://10.0.0.1/", "no public address"), ("http://[::1]/", "no public address"), ("http://0x7f.1/", "no valid host"),
        ("http://inside.example/", "no public address"), ("//127.0.0.2/", "no public address"),
        ("file:///etc/passwd", "not http or https"), ("data:image/png;base64,AAAA", "not http or https"),
        ("http://user@images.example/", "user name"), ("http://[::1", "download failed"), ("", "more than"),
        ("http://images.example:x/", "no valid URL"), ("\xff\xfe", "download failed|no valid"), ("/a.png", f"more than {MAX_REDIRECTS} redirects"),
    ],
)  # fmt: skip
def test_redirects_to_where_no_url_may_lead_are_refused(location: str, message: str) -> None:
    fetcher = local_fetcher(names=Names(inside_example=["192.168.0.1"]))
    refused({"/a.png": redirect(location)}, message, fetcher=fetcher)


def test_only_named_domains_are_fetched_from_even_after_a_redirect() -> None:
    limits = dataclasses.replace(LIMITS, allowed_domains=("cdn.images.example",))

    def named(server: MediaServer) -> str:
        return server.url("/a.png", "x.cdn.images.example")

    body, _ = fetch({"/a.png": response(BODY)}, named, local_fetcher(limits))
    assert body == BODY
    message = r"images of images\.example are not permitted, only of cdn\.images\.example \(--allowed_media_domains\)"
    refused({}, message, fetcher=local_fetcher(limits))
    refused({"/a.png": redirect("http://images.example/")}, message, url=named, fetcher=local_fetcher(limits))


def test_a_named_address_is_fetched_from_though_it_is_private() -> None:
    limits = dataclasses.replace(LIMITS, allowed_domains=("127.0.0.1",))
    body, _ = fetch(
        {"/": response(BODY)}, lambda server: server.url("/", "127.0.0.1"), Fetcher(limits, Names())
    )
    assert body == BODY
    refused(
        {}, "not permitted", url=lambda server: server.url("/", "127.0.0.2"), fetcher=Fetcher(limits, Names())
    )


async def endless_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("drip", [endless_drip, endless_head])
def test_a_server_that_drips_is_left_when_the_time_is_over(drip: Answer) -> None:
    limits = dataclasses.replace(LIMITS, fetch_timeout=0.3)
    refused(
        {"/a.png": drip}, r"took longer than 0\.3 s \(--image_fetch_timeout\)", fetcher=local_fetcher(limits)
    )


async def chunks_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        await writer.drain()


async def long_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: " + b"y" * 8000 + b"\r\n")
        await writer.drain()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (response(b"x" * 100_001), r"more than 100000 bytes \(--max_image_mb\)"),
        (chunks_without_end, r"more than 100000 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n", "more than 100000 bytes"),
        (long_head, "download failed"),
        (response(b"", "404 Not Found"), "answered 404"),
        (response(b"", "304 Not Modified"), "answered 304"),
        (response(b"", "302 Found"), "answered 302"),
        (response(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip"), "compressed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", "download failed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "download failed"),
        (b"", "download failed"),
    ],
)  # fmt: skip
def test_what_is_no_image_of_a_permitted_size_ends_with_its_reason(answer: Answer, message: str) -> None:
    refused({"/a.png": answer}, message)


def test_a_port_that_nothing_listens_on_is_a_failed_download() -> None:
    async def run() -> None:
        async with media_server({}) as server:
            url = server.url()
        await local_fetcher().get(url, "here")

    with pytest.raises(InvalidImage, match="download failed"):
        asyncio.run(run())


def test_a_cancelled_download_closes_its_connection() -> None:
    async def run() -> None:
        async with media_server({"/a.png": endless_drip}) as server, asyncio.timeout(20):
            task = asyncio.create_task(local_fetcher().get(server.url("/a.png"), "here"))
            while not server.requests:
                await asyncio.sleep(0.005)
            task.cancel()
            await server.left.wait()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


@pytest.mark.parametrize(("host", "trusted"), [("images.example", True), ("other.images.example", False)])
def test_the_certificate_must_be_for_the_name_in_the_url(host: str, trusted: bool) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(CERTIFICATE)
    named: list[str | None] = []
    serving.sni_callback = lambda _socket, name, _context: named.append(name)
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))

    async def run() -> bytes:
        async with media_server({"/a.png": response(BODY)}, serving) as server:
            fetcher = Fetcher(LIMITS, Names(), only_local, trusting)
            return await fetcher.get(server.url("/a.png", host, "https"), "here")

    if trusted:
        assert asyncio.run(run()) == BODY
    else:
        with pytest.raises(InvalidImage, match="download failed"):
            asyncio.run(run())
    assert named == [host]

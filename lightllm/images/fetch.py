"""Downloads of images whose URLs clients name.

What the URL leads to is decided here and nowhere else: its parts are taken apart once, the host's addresses are checked, and the
connection goes to one of exactly these. Each redirect starts anew. Neither proxies of the environment, nor cookies, credentials or
compressed bodies take part. `httpcore2` speaks HTTP; `_CheckedNetwork` is its network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from lightllm import __version__
from lightllm.errors import InvalidImage
from lightllm.images.addresses import (
    Address,
    Resolve,
    Resolver,
    check_host,
    in_domains,
    is_public,
    public_addresses,
)  # fmt: skip
from lightllm.images.limits import ImageLimits

MAX_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)
_TRIED_ADDRESSES = 3
"""Of one host, before it counts as unreachable."""
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"
"""Besides letters, digits and _.-: what of a URL is not percent-encoded (again)."""


class Fetcher:
    """Downloads of one event loop. The arguments beside `limits` are for tests: the system's resolver, public addresses and the
    system's certificates otherwise."""

    def __init__(
        self,
        limits: ImageLimits,
        resolver: Resolver | None = None,
        permitted: Callable[[Address], bool] = is_public,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._resolver = resolver or Resolve()
        self._public = permitted
        self._ssl = ssl_context

    async def get(self, url: str, field: str) -> bytes:
        """The body that `url` (http or https) leads to. Raises `InvalidImage` naming `field`."""
        if self._ssl is None:
            self._ssl = await asyncio.to_thread(_system_certificates)
        network = _CheckedNetwork(self._resolver, self._permitted, field)
        try:
            async with (
                asyncio.timeout(self._limits.fetch_timeout),
                httpcore2.AsyncConnectionPool(
                    ssl_context=self._ssl, network_backend=network, max_keepalive_connections=0
                ) as pool,
            ):
                for _ in range(MAX_REDIRECTS + 1):
                    body, location = await self._step(pool, self._parse(url, field), field)
                    if location is None:
                        return body
                    url = urljoin(url, location)
        except TimeoutError as error:
            raise InvalidImage(
                f"{field}: the download took longer than {self._limits.fetch_timeout:g} s (--image_fetch_timeout)",
                param=field,
            ) from error
        except (
            httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError, OSError, ValueError
        ) as error:  # ValueError: a redirect to what is no URL, a host that TLS cannot name  # fmt: skip
            raise InvalidImage(
                f"{field}: the download failed ({type(error).__name__})", param=field
            ) from error
        raise InvalidImage(f"{field}: more than {MAX_REDIRECTS} redirects", param=field)

    def close(self) -> None:
        if isinstance(self._resolver, Resolve):
            self._resolver.close()

    async def _step(
        self, pool: httpcore2.AsyncConnectionPool, target: httpcore2.URL, field: str
    ) -> tuple[bytes, str | None]:
        """One request: (body, None), or (b"", where it is redirected to)."""
        usual = _PORTS[target.scheme.decode()]
        host = b"[%s]" % target.host if b":" in target.host else target.host
        headers = [
            (b"Host", host if target.port in (None, usual) else b"%s:%d" % (host, target.port)),
            (b"User-Agent", f"lightllm/{__version__}".encode()),
            (b"Accept", b"image/*"),
            (b"Accept-Encoding", b"identity"),
        ]
        async with pool.stream("GET", target, headers=headers) as response:
            told = {name.lower(): value.decode(errors="replace") for name, value in response.headers}
            if response.status in _REDIRECTS and b"location" in told:
                return b"", told[b"location"]
            if response.status != 200:
                raise InvalidImage(
                    f"{field}: the server of the image answered {response.status}", param=field
                )
            if told.get(b"content-encoding", "identity").lower() != "identity":
                raise InvalidImage(f"{field}: the server of the image sends it compressed", param=field)
            length = told.get(b"content-length", "")
            if length.isdecimal() and int(length) > self._limits.max_bytes:
                raise self._too_large(field)
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._limits.max_bytes:
                    raise self._too_large(field)
            return bytes(body), None

    def _parse(self, url: str, field: str) -> httpcore2.URL:
        """The URL's parts, each of them checked."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InvalidImage(f"{field}: {url[:60]!r} is no valid URL ({error})", param=field) from error
        if parts.scheme not in _PORTS:
            raise InvalidImage(f"{field} leads to {url[:60]!r}, which is not http or https", param=field)
        if parts.username is not None or parts.password is not None:
            raise InvalidImage(f"{field}: URLs with a user name or password are not fetched", param=field)
        host = check_host(parts.hostname or "", field)
        domains = self._limits.allowed_domains
        if domains is not None and not in_domains(host, domains):
            raise InvalidImage(
                f"{field}: images of {host} are not permitted, only of {', '.join(domains)} (--allowed_media_domains)",
                param=field,
            )
        path = quote(parts.path or "/", safe=_URL_SAFE)
        query = f"?{quote(parts.query, safe=_URL_SAFE)}" if parts.query else ""
        return httpcore2.URL(scheme=parts.scheme, host=host, port=port, target=path + query)

    def _permitted(self, address: Address) -> bool:
        """An address that --allowed_media_domains names is permitted, public or not."""
        return self._public(address) or str(address) in (self._limits.allowed_domains or ())

    def _too_large(self, field: str) -> InvalidImage:
        return InvalidImage(
            f"{field}: the image has more than {self._limits.max_bytes} bytes (--max_image_mb)", param=field
        )


@cache
def _system_certificates() -> ssl.SSLContext:
    """Read once a process: it takes tens of milliseconds."""
    return httpcore2.default_ssl_context()


class _CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to permitted addresses alone. TLS goes by the host's name all the same: httpcore2 asks for that afterwards."""

    def __init__(self, resolver: Resolver, permitted: Callable[[Address], bool], field: str) -> None:
        self._resolver = resolver
        self._permitted = permitted
        self._field = field
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await public_addresses(host, port, self._resolver, self._permitted, self._field)
        failure: Exception | None = None
        for address in addresses[:_TRIED_ADDRESSES]:
            try:
                return await self._network.connect_tcp(str(ipaddress.ip_address(address)), port, timeout)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore2.ConnectError("no address")

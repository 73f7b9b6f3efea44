"""Which hosts the server may be made to connect to: none that a client could not reach without it.

A host is checked twice: its name before it is resolved (`check_host`), every address it has before one is connected to
(`public_addresses`). Addresses inside other addresses (IPv4-mapped, NAT64, 6to4, Teredo) are never taken: where they lead depends
on the network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from lightllm.errors import InvalidImage

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]
"""(name, port) -> its addresses; raises OSError."""

_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC = [
    ipaddress.ip_network(text)
    for text in (
        # IPv4: IANA's special-purpose registry
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        # IPv6, of what global unicast has: protocols (with Teredo), documentation, 6to4
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
]  # fmt: skip
"""Written out, because `ipaddress.is_global` differs from one Python release to the next."""
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_RESOLVER_THREADS = 4
"""Of their own, so that names that nothing answers for keep nothing else waiting."""
_MAX_HOST = 253
"""Characters."""


def is_public(address: Address) -> bool:
    """Whether anybody on the internet reaches the same machine under this address."""
    if address.version == 6 and address not in _GLOBAL_UNICAST:
        return False  # loopback, link-local, unique-local, multicast, mapped, compatible, NAT64
    return not any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def check_host(host: str, field: str) -> str:
    """The host as it is resolved: lower case, ASCII, without a final dot; an IPv6 address without its brackets.

    Raises `InvalidImage` for what is no name, and for IPv4 addresses in any but the usual spelling (0x7f.1, 2130706433,
    0177.0.0.1), which programs read differently.
    """
    name = host.rstrip(".").lower()
    if "%" not in name:  # an IPv6 zone: only link-local addresses have one
        with suppress(ValueError):
            return str(ipaddress.ip_address(name))
    try:
        name = name.encode("ascii" if name.isascii() else "idna").decode()
    except UnicodeError:
        name = ""
    labels = name.split(".")
    numeric = re.fullmatch(r"\d+|0x[0-9a-f]*", labels[-1])
    if numeric or len(name) > _MAX_HOST or not all(map(_LABEL.fullmatch, labels)):
        raise InvalidImage(f"{field}: {host[:60]!r} is no valid host name or address", param=field)
    return name


def in_domains(host: str, domains: Sequence[str]) -> bool:
    """Whether `host` is one of the names (or addresses), or below one of the names."""
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)


class Resolve:
    """The system's resolver, outside the event loop; a `Resolver`."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, "resolve")

    async def __call__(self, name: str, port: int) -> list[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


async def public_addresses(
    host: str, port: int, resolver: Resolver, permitted: Callable[[Address], bool], field: str
) -> list[str]:
    """Addresses of `host` (from `check_host`), all of them permitted. Raises `InvalidImage`, which names no address: what
    names mean inside a network is nothing for clients."""
    try:
        try:
            addresses = [ipaddress.ip_address(host)]
        except ValueError:
            addresses = [ipaddress.ip_address(text) for text in await resolver(host, port)]
    except (OSError, ValueError, UnicodeError) as error:
        raise InvalidImage(f"{field}: the host {host} cannot be found", param=field) from error
    if not addresses or not all(map(permitted, addresses)):
        raise InvalidImage(
            f"{field}: the host {host} has no public address, or another one besides; images are fetched from public ones only",
            param=field,
        )
    return [str(address) for address in addresses]

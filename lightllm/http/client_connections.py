"""How many connections each client has: with --max_connections_per_client none takes those of all others.

A client is an address; of an IPv6 address its first 64 bits, which is the least that a subscriber is given (RFC 6177).
"""

from __future__ import annotations

import ipaddress
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)
_TOLD_SECONDS = 10.0
"""Between two lines of the log about clients that were turned away."""


class ClientConnections:
    """Of one Http worker. Used in the event loop."""

    def __init__(self, limit: int) -> None:
        """limit: connections of one client; 0: any number."""
        self._limit = limit
        self._open: Counter[str] = Counter()
        self._turned_away = 0
        """Since the last line of the log."""
        self._told = -_TOLD_SECONDS

    def __len__(self) -> int:
        """Clients that have connections, where they are limited."""
        return len(self._open)

    def enter(self, address: Any) -> Callable[[], None] | None:
        """address: of a socket's peer. What to call when the connection has ended, once or more often; None: the client has as
        many as it may have."""
        if not self._limit:
            return _nothing
        client = client_of(address)
        if self._open[client] >= self._limit:
            self._tell(client)
            return None
        self._open[client] += 1
        entered = True

        def leave() -> None:
            nonlocal entered
            if entered:
                entered = False
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]

        return leave

    def _tell(self, client: str) -> None:
        self._turned_away += 1
        now = time.monotonic()
        if now - self._told >= _TOLD_SECONDS:
            _log.warning(
                "%d connections were turned away, the last one of %s, which has %d already (--max_connections_per_client)",
                self._turned_away, client, self._limit,
            )  # fmt: skip
            self._told, self._turned_away = now, 0


def client_of(address: Any) -> str:
    """Whom a socket's peer address belongs to. All of a Unix socket are one."""
    if not isinstance(address, tuple):
        return ""
    ip = ipaddress.ip_address(address[0].partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return str(ipaddress.ip_network((ip, 64), strict=False))
        ip = ip.ipv4_mapped
    return str(ip)


def _nothing() -> None:
    pass

"""Which URLs may be workers: the controller sends clients' prompts there, and whatever it can reach it could be made to call."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from lightllm.errors import Forbidden, InvalidOption
from lightllm.http.browser_guard import is_loopback


class AllowedWorkers:
    def __init__(self, patterns: Sequence[str] | None, signed: bool) -> None:
        """patterns: None for the default; signed: registrations are signed. Raises `InvalidOption`."""
        self._default = patterns is None
        self._signed = signed
        self._names = [pattern.lower() for pattern in patterns or () if not _is_network(pattern)]
        self._networks = [
            ipaddress.ip_network(pattern, strict=False) for pattern in patterns or () if _is_network(pattern)
        ]
        for name in self._names:
            if set(name) & set(":/"):
                raise InvalidOption(f"--allowed_workers {name}: hosts have neither a scheme nor a port.")

    def check(self, url: str, peer: str) -> str:
        """The URL as workers are known by it. peer: the address that it came from. Raises `Forbidden`."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            host, port = "", None
        if (
            not host
            or parts.scheme not in ("http", "https")
            or parts.username
            or parts.query
            or parts.fragment
        ):
            raise Forbidden(f"{url[:200]!r} is no URL of a worker: http://HOST:PORT")
        if not self._allows(host, peer):
            raise Forbidden(
                f"workers at {host[:200]} are not allowed: start the controller with --allowed_workers {host[:200]}"
            )
        shown = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{shown}{f':{port}' if port else ''}{parts.path.rstrip('/')}"

    def _allows(self, host: str, peer: str) -> bool:
        if self._default:
            return is_loopback(host) or (self._signed and host == peer)
        if any(_matches(host, name) for name in self._names):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)


def _is_network(pattern: str) -> bool:
    try:
        ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return False
    return True


def _matches(host: str, pattern: str) -> bool:
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))

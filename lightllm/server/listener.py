"""The listening HTTP socket: opened by the Supervisor, shared by all Http workers."""

from __future__ import annotations

import errno
import socket

from lightllm.errors import InvalidOption, StartupError

_BACKLOG = 4096
_KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
"""Seconds, seconds, probes: a client whose machine or network went away without a word is noticed in two minutes."""


def open_listener(host: str, port: int) -> socket.socket:
    """Binds and listens; port 0 takes a free one. Raises `StartupError` saying what to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidOption(
            f"--host {host} cannot be resolved: {error.strerror}.", "Give an address of this machine."
        ) from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # accepted connections inherit these
    for option, value in _KEEPALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, host, port) from error
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL to try from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _explained(error: OSError, host: str, port: int) -> StartupError:
    known = {
        errno.EADDRINUSE: (
            f"Port {port} on {host} is in use.", "Stop what listens there, or choose another --port (0 takes a free one)."
        ),
        errno.EACCES: (f"Port {port} needs privileges.", "Choose a --port from 1024 on."),
        errno.EADDRNOTAVAIL: (
            f"--host {host} is not an address of this machine.", "127.0.0.1 and 0.0.0.0 always work."
        ),
    }  # fmt: skip
    otherwise = (f"Cannot listen on {host}:{port}: {error.strerror}.", "")
    return StartupError(*known.get(error.errno or 0, otherwise))

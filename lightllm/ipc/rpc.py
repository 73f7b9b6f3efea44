"""rpyc as a plain request-response transport: bytes in, bytes out over a Unix socket. No pickle, no netrefs.

rpyc's service exposes one method, `call(name, payload)`; both are immutable and cross by value.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
import rpyc
from rpyc.utils.server import ThreadedServer

from lightllm.protocol import codec

CONFIG = {"allow_pickle": False, "allow_public_attrs": False, "sync_request_timeout": None}
_POLL_SECONDS = 0.01
_Answer = TypeVar("_Answer")


class Service(rpyc.Service):
    """What a connection can reach."""

    def __init__(self, handlers: dict[str, Callable[[bytes], bytes]]) -> None:
        self._handlers = handlers

    def exposed_call(self, name: str, payload: bytes) -> tuple[bool, bytes]:
        try:
            return True, self._handlers[name](payload)
        except Exception as error:  # it belongs to the caller; the server must go on
            return False, f"{type(error).__name__}: {error}".encode()


def name_while_starting(path: str) -> str:
    """Where to bind a socket that is renamed to `path` once it listens: a process that sees the file can connect. What one that
    was killed just then has left there is removed."""
    starting = f"{path}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(starting)
    return starting


class RpcServer:
    """Serves `handlers` on a Unix socket from a background thread. A handler gets and returns message bytes; what it
    raises reaches the caller as `RpcError` with the text."""

    def __init__(self, path: str, handlers: dict[str, Callable[[bytes], bytes]]) -> None:
        logger = logging.getLogger("rpyc")
        logger.setLevel(logging.WARNING)
        self._path = path
        starting = name_while_starting(path)
        self._server = ThreadedServer(
            Service(handlers), socket_path=starting, protocol_config=dict(CONFIG), logger=logger
        )
        self._server.listener.listen()
        os.replace(starting, path)
        threading.Thread(target=self._server.start, name="rpc", daemon=True).start()

    def close(self) -> None:
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


def call_when_there(
    path: str, name: str, request: msgspec.Struct, answer: type[_Answer], stopping: threading.Event
) -> _Answer | None:
    """One call, as soon as the server is there; None: `stopping` was set before. For how long to wait is the caller's affair."""
    while not stopping.is_set():
        if os.path.exists(path):
            with contextlib.suppress(ConnectionRefusedError), contextlib.closing(RpcClient(path)) as client:
                return cast(_Answer, client.call(name, request, answer))
        stopping.wait(_POLL_SECONDS)
    return None


class RpcError(Exception):
    """What a handler raised on the other side."""


class RpcClient:
    """Calls an `RpcServer`. Blocks; use it from a thread when something else must go on. `EOFError`: it is gone."""

    def __init__(self, path: str) -> None:
        self._connection = rpyc.connect_channel(
            rpyc.Channel(rpyc.SocketStream.unix_connect(path)), config=dict(CONFIG)
        )
        self._call = self._connection.root.call

    def call(self, name: str, request: msgspec.Struct | None, answer: type | None) -> Any:
        """Sends `request`, returns the answer decoded as `answer` (None: nothing is expected)."""
        ok, payload = self._call(name, b"" if request is None else codec.encode(request))
        if not ok:
            raise RpcError(payload.decode(errors="replace"))
        return None if answer is None else codec.Decoder(answer).decode(payload)

    def fileno(self) -> int:
        """Readable between two calls: the server is gone, as `check` finds out."""
        return self._connection.fileno()

    def check(self) -> None:
        """Raises `EOFError` if the server is gone."""
        self._connection.poll()

    def close(self) -> None:
        self._connection.close()

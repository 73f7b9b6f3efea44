"""rpyc for a process that owns one thing: every connection is served by the thread that runs the loop, a call at a time.

A handler is told whose call it is: clients are numbered from 1, and what a client owned can be given back when its connection
ends, however its process ended.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import selectors
import socket
from collections.abc import Callable

import rpyc

from lightllm.ipc.rpc import CONFIG, Service, name_while_starting

_log = logging.getLogger(__name__)

Handler = Callable[[int, bytes], bytes]
"""(client, message bytes) -> message bytes"""


class RpcLoop:
    """Listens from the start on; `RpcClient`s connect."""

    def __init__(self, path: str, handlers: dict[str, Handler], on_closed: Callable[[int], None]) -> None:
        """on_closed: the client's connection has ended."""
        self._handlers = handlers
        self._on_closed = on_closed
        self._clients = itertools.count(1)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        starting = name_while_starting(path)
        self._listener.bind(starting)
        self._listener.listen()
        os.replace(starting, path)
        self._selector = selectors.DefaultSelector()

    def run(self, stop_descriptor: int, tick: Callable[[], float | None]) -> None:
        """Until `stop_descriptor` becomes readable. tick: called between calls; seconds until it must be called again."""
        self._selector.register(stop_descriptor, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select(tick()):
                if key.fd == stop_descriptor:
                    return
                if key.data is None:
                    self._accept()
                else:
                    self._serve(key.fd, *key.data)

    def _accept(self) -> None:
        connected, _ = self._listener.accept()
        client = next(self._clients)
        service = Service(
            {name: functools.partial(handler, client) for name, handler in self._handlers.items()}
        )
        channel = rpyc.Channel(rpyc.SocketStream(connected))
        connection = service._connect(channel, dict(CONFIG))
        self._selector.register(connected.fileno(), selectors.EVENT_READ, (client, connection))

    def _serve(self, descriptor: int, client: int, connection: rpyc.Connection) -> None:
        try:
            connection.poll()
        except EOFError:
            _log.debug("client %d is gone", client)
        except Exception:  # no rpyc at all; the other clients go on
            _log.exception("the connection of client %d is given up", client)
            connection.close()
        if connection.closed:
            self._selector.unregister(descriptor)
            self._on_closed(client)

"""ZMQ work channels: typed messages, one direction a socket, never blocking the sender.

A frame is the sender's epoch (uint32, little-endian) followed by the msgpack message. A frame of an epoch below the
receiver's comes from an earlier life of the engine and is dropped. There is no high-water mark: admission bounds what
can be in flight. Sockets are not thread-safe: one thread per channel object.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import zmq

from lightllm.protocol import codec

_log = logging.getLogger(__name__)
_EPOCH = struct.Struct("<I")


def make_context() -> zmq.Context:
    """A ZMQ context whose sockets discard unsent messages when closed (a dead peer must not hold up an exit)."""
    context: zmq.Context = zmq.Context()
    context.linger = 0
    return context


class Epoch:
    """The life of the engine that a process takes part in: a new one begins with every start of the Router. All
    channels of a process share this object."""

    def __init__(self, number: int) -> None:
        self.raise_to(number)

    def raise_to(self, number: int) -> None:
        """What is sent from now on belongs to this epoch, and what is received and belongs to an earlier one is
        dropped."""
        self.number = number
        self.prefix = _EPOCH.pack(number)


EVERY_EPOCH = Epoch(0xFFFFFFFF)
"""For what is sent from one process to another whatever the engine does in between: it is never dropped."""


class PushChannel:
    """The sending end. Sends before the peer exists are queued."""

    def __init__(self, context: zmq.Context, address: str, epoch: Epoch) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.set_hwm(0)
        self._epoch = epoch
        self._socket.connect(address)

    def send(self, message: msgspec.Struct) -> None:
        self.send_bytes(codec.encode(message))

    def send_bytes(self, data: bytes) -> None:
        """Sends a message that is encoded already (a round to every rank, a request passed on)."""
        self._socket.send(self._epoch.prefix + data)

    def close(self, linger_ms: int = 0) -> None:
        """`linger_ms`: how long unsent messages may still leave."""
        self._socket.close(linger=linger_ms)


class PullChannel:
    """The receiving end; owns (binds) its address."""

    def __init__(self, context: zmq.Context, address: str, decoder: codec.Decoder, epoch: Epoch) -> None:
        self.socket = context.socket(zmq.PULL)
        self.socket.set_hwm(0)
        self.socket.bind(address)
        self._decoder = decoder
        self._epoch = epoch

    def receive_bytes(self) -> bytes | None:
        """The next message, still encoded; None if there is none now."""
        while True:
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if len(frame) > _EPOCH.size and _EPOCH.unpack_from(frame)[0] >= self._epoch.number:
                return frame[_EPOCH.size :]

    def decode(self, data: bytes) -> Any:
        return self._decoder.decode(data)

    def receive(self) -> Any | None:
        """The next message; None if there is none now. Raises `msgspec.MsgspecError` for a malformed one."""
        data = self.receive_bytes()
        return None if data is None else self._decoder.decode(data)

    def wait(self, timeout_ms: int | None) -> bool:
        """Waits for a message; None waits for ever."""
        return bool(self.socket.poll(timeout_ms))

    def on_message(self, loop: asyncio.AbstractEventLoop, callback: Callable[[Any], None]) -> None:
        """Calls back in the event loop for every message, draining the socket at each wake-up (its descriptor is
        edge-triggered)."""

        def drain() -> None:
            while True:
                try:
                    message = self.receive()
                except msgspec.MsgspecError:  # those behind it would stay unseen until the next wake-up
                    _log.exception("a malformed message was dropped")
                    continue
                if message is None:
                    break
                callback(message)

        loop.add_reader(self.socket.getsockopt(zmq.FD), drain)
        loop.call_soon(drain)

    def close(self) -> None:
        self.socket.close(linger=0)

"""The log of the whole server on its way to standard error: a reader that stops reading never holds up the server.

A thread writes; what it has not written yet is bounded, and what does not fit is dropped and counted. Standard error itself
stays as it is: it may be shared with a terminal, so that it must not be made non-blocking.
"""

from __future__ import annotations

import os
import select
import threading
import time

LIMIT = 1 << 20
"""Bytes that may wait to be written."""
_CLOSE_SECONDS = 2.0
_PIECE = 4096
"""Bytes written at once: a pipe takes so many whole or not at all, and lines of others fall between them."""


class LogOutput:
    """To be used as the stream of a logging handler, too. Every method returns at once and raises nothing, `close`
    waits two seconds at most."""

    def __init__(self, descriptor: int = 2, limit: int = LIMIT) -> None:
        self._descriptor = descriptor
        self._limit = limit
        self._waiting = bytearray()
        self._writing = 0
        """Bytes that the thread has taken."""
        self._lost = 0
        """Lines since the last one that was written."""
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        self.write_bytes(text.encode(errors="backslashreplace"))

    def write_bytes(self, data: bytes) -> None:
        with self._changed:
            if self._writing + len(self._waiting) + len(data) > self._limit:
                self._lost += _lines(data)
                return
            self._waiting += data
            self._changed.notify_all()

    def flush(self) -> None:
        """For logging: the thread writes whatever there is."""

    def close(self) -> None:
        """Waits until everything is written, if that goes on."""
        deadline = time.monotonic() + _CLOSE_SECONDS
        with self._changed:
            while (self._waiting or self._writing) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                data, lost = bytes(self._waiting), self._lost
                self._writing = len(data)
                self._waiting.clear()
            if lost and self._write_all(
                b"(%d lines of the log were lost: they could not be written)\n" % lost
            ):
                with self._changed:
                    self._lost -= lost
            written = self._write_all(data)
            with self._changed:
                self._writing = 0
                self._lost += _lines(data[written:])
                self._changed.notify_all()

    def _write_all(self, data: bytes) -> int:
        """Waits until it is written; bytes that were: fewer if there is no reader or the disk is full."""
        done = 0
        while done < len(data):
            try:
                done += os.write(self._descriptor, data[done : done + _PIECE])
            except BlockingIOError:  # another process made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:
                break
        return done


def _lines(data: bytes) -> int:
    return max(1, data.count(b"\n")) if data else 0

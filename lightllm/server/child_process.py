"""One child as the Supervisor sees it: its process, its channel, its stderr, and what it last said."""

from __future__ import annotations

import collections
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from lightllm.ipc.child import CHANNEL_VARIABLE, RUNTIME_VARIABLE, STACKS_SIGNAL
from lightllm.ipc.mapped_file import describe_room
from lightllm.ipc.openmp_files import remove_openmp_registration
from lightllm.protocol.control import Command, Status
from lightllm.server.environment import without_empty_values
from lightllm.server.plan import ChildSpec

_LINES_KEPT = 20
_LINE_KEPT = 2000
"""Characters of one line that are kept."""
_PERCENTAGE_SECONDS = 1.0
"""Least time between two progress reports of one child that are shown."""


_SHARED_MEMORY = Path("/dev/shm")


class ChildProcess:
    """Starts the child at once. Its descriptors are registered in `selector` with the method that reads them."""

    def __init__(
        self,
        spec: ChildSpec,
        runtime_dir: str,
        selector: selectors.BaseSelector,
        write: Callable[[bytes], None],
    ) -> None:
        """write: passes on what the child writes."""
        self.spec = spec
        self.name = spec.name
        self.status = Status(process=spec.name, state="starting")
        self._statuses: list[Status] = []
        self._percentage_shown = -_PERCENTAGE_SECONDS
        self.failure: Status | None = None
        self.seconds_until: dict[str, float] = {}
        """State -> seconds from the start of the process until it was first reported."""
        self.returncode: int | None = None
        self.killed = False
        """By the Supervisor itself."""
        self._lines: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)
        self._partial_line = b""
        self._partial_status = b""
        self._closed = False
        self._selector = selector
        self._write = write
        self._folders = (Path(runtime_dir), _SHARED_MEMORY)
        self._started = time.monotonic()
        self._channel, theirs = socket.socketpair()
        with theirs:
            # A group of its own: Ctrl-C in a terminal reaches a whole process group, and until the child ignores
            # SIGINT its interpreter would die of it.
            self._process = subprocess.Popen(
                [sys.executable, "-m", spec.module, *spec.arguments],
                env=without_empty_values()
                | spec.environment
                | {CHANNEL_VARIABLE: str(theirs.fileno()), RUNTIME_VARIABLE: runtime_dir},
                pass_fds=(theirs.fileno(), *spec.descriptors),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.pid = self._process.pid
        self._channel.setblocking(False)
        assert self._process.stdout is not None
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)
        selector.register(self._channel, selectors.EVENT_READ, self.read_statuses)
        selector.register(self._output, selectors.EVENT_READ, self.forward_output)

    @property
    def running(self) -> bool:
        return self.returncode is None

    @property
    def ready(self) -> bool:
        return self.status.state == "ready" and self.running

    @property
    def starting(self) -> bool:
        """It has not been ready yet, and has not begun to end either."""
        return self.status.state in ("starting", "loading")

    @property
    def reported(self) -> bool:
        """Whether it has said anything: then it obeys, too."""
        return bool(self.seconds_until)

    @property
    def last_lines(self) -> list[str]:
        """The end of what it wrote to stderr or stdout."""
        rest = [_text(self._partial_line)] if self._partial_line.strip() else []
        return [*self._lines, *rest][-_LINES_KEPT:]

    def take_statuses(self) -> list[Status]:
        """What it reported since the last call, for the log; percentages not more often than every second."""
        taken = []
        for status in self._statuses:
            if status.detail.endswith("%"):
                now = time.monotonic()
                if now - self._percentage_shown < _PERCENTAGE_SECONDS:
                    continue
                self._percentage_shown = now
            taken.append(status)
        self._statuses.clear()
        return taken

    def send(self, command: Command) -> None:
        """Sends a command; a child that is gone is noticed by `reap`, and has no channel after `close`."""
        if not self.running:
            return
        try:
            self._channel.sendall(msgspec.json.encode(command) + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            self.reap()

    def write_stacks(self) -> None:
        """Has it write the stacks of its threads to the log, if it runs at all."""
        if self.running:
            self._process.send_signal(STACKS_SIGNAL)

    def kill(self) -> None:
        if self.running:
            self.killed = True
            self._process.kill()

    def wait(self) -> None:
        """Waits for the end after `kill`."""
        self._process.wait()
        self.reap()

    def reap(self) -> bool:
        """Whether the process has ended; what it still said is read before that becomes visible."""
        if self.running and self._process.poll() is not None:
            self.forward_output()
            self.read_statuses()
            self.returncode = self._process.returncode
            remove_openmp_registration(self.pid)
        return not self.running

    def read_statuses(self) -> None:
        try:
            while data := self._channel.recv(65536):
                self._partial_status += data
            self._unregister(self._channel)
        except BlockingIOError:
            pass  # everything that is there has been read
        except ConnectionResetError:
            self._unregister(self._channel)
        *lines, self._partial_status = self._partial_status.split(b"\n")
        for line in lines:
            self._take(msgspec.json.decode(line, type=Status))

    def forward_output(self) -> None:
        """Passes what the child wrote on to the log as it comes, and keeps the last lines."""
        try:
            while data := os.read(self._output, 65536):
                self._write(data)
                *lines, self._partial_line = (self._partial_line + data).replace(b"\r", b"\n").split(b"\n")
                self._lines.extend(_text(line) for line in lines if line.strip())
            self._unregister(self._output)
        except BlockingIOError:
            pass  # everything that is there has been read

    def how_it_ended(self) -> str:
        """The exit status in words."""
        if self.returncode is None:
            return "is running"
        if self.returncode < 0:
            return f"was killed by {signal.Signals(-self.returncode).name}{self._why_killed()}"
        return f"ended with exit code {self.returncode}"

    def _why_killed(self) -> str:
        """Of SIGBUS the usual cause can be named: a file that is mapped, for which there is no room."""
        if -(self.returncode or 0) != signal.SIGBUS:
            return ""
        return f": shared memory has no room left. {' '.join(map(describe_room, self._folders))}"

    def close(self) -> None:
        """Gives back what a child that has ended had here; the second time nothing is done, for its descriptors may be
        another's then."""
        if self._closed:
            return
        self._closed = True
        self._unregister(self._channel)
        self._unregister(self._output)
        self._channel.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _take(self, status: Status) -> None:
        self.seconds_until.setdefault(status.state, time.monotonic() - self._started)
        self.seconds_until.setdefault("first report", time.monotonic() - self._started)
        if status.state == "failed":
            self.failure = self.failure or status
        self.status = status
        self._statuses.append(status)

    def _unregister(self, source: "socket.socket | int") -> None:
        if source in self._selector.get_map():
            self._selector.unregister(source)


def find_cause(children: Iterable[ChildProcess]) -> ChildProcess | None:
    """Of those that have failed or ended the probable cause: one that was killed, then in the order of their reports; None:
    there is none."""
    ended = (child for child in children if child.failure or not child.running)
    return min(
        ended, default=None, key=lambda c: ((c.returncode or 0) >= 0, c.seconds_until.get("failed", math.inf))
    )


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip()[:_LINE_KEPT]

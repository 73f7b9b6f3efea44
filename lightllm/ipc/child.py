"""What every child process of the Supervisor does at its start: title, signals, death with its parent, status lines.

The Supervisor passes one end of a socket pair (its descriptor number in `LIGHTLLM_CHANNEL_FD`). Over it the child
writes `Status` lines and reads `Command` lines; end of file means that the Supervisor is gone, and the child ends too.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import setproctitle

from lightllm.config import ServerConfig
from lightllm.errors import StartupError
from lightllm.ipc.beats import Beat
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.control import Command, Status

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

CHANNEL_VARIABLE = "LIGHTLLM_CHANNEL_FD"
RUNTIME_VARIABLE = "LIGHTLLM_RUNTIME_DIR"
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
STACKS_SIGNAL = signal.SIGUSR1
"""Makes a child write the stacks of all its threads to its log."""


class Child:
    """The child's end of the Supervisor's channel."""

    def __init__(self, name: str, channel: socket.socket, runtime: RuntimeDir, config: ServerConfig) -> None:
        self.name = name
        self.runtime = runtime
        self.config = config
        self._channel = channel
        self._lock = threading.Lock()
        self._obeying = threading.Lock()
        self._obey: Callable[[Command], None] = self._keep
        self._kept: list[Command] = []
        """Commands that came before `on_command`."""
        threading.Thread(target=self._read_commands, name="supervisor-channel", daemon=True).start()

    @functools.cached_property
    def beat(self) -> Beat:
        """Shows that this process runs; what uses it first must go on using it. Raises `StartupError`."""
        return Beat(self.runtime.beats_dir / self.name)

    def report(
        self, state: str, detail: str = "", remedy: str = "", seconds: dict[str, float] | None = None,
        final: bool = False, broken_set: int | None = None,
    ) -> None:  # fmt: skip
        """Sends a status line; safe from any thread."""
        status = Status(self.name, state, detail, remedy, seconds or {}, final, broken_set)  # type: ignore[arg-type]
        with self._lock:
            try:
                self._channel.sendall(msgspec.json.encode(status) + b"\n")
            except OSError:
                logging.getLogger(__name__).debug("the supervisor is gone")

    def on_command(self, callback: Callable[[Command], None]) -> None:
        """Calls back, in a thread of its own, for every command, and at once for those that have come before; a lost
        Supervisor is a `stop`. Until this is called `stop` ends the process at once: there is nothing yet that it could
        leave behind."""
        with self._obeying:
            self._obey = callback
            for command in self._kept:
                callback(command)

    def _read_commands(self) -> None:
        try:
            with self._channel.makefile("rb") as lines:
                for line in lines:
                    self._take(msgspec.json.decode(line, type=Command))
        except ConnectionResetError:
            logging.getLogger(__name__).debug("the supervisor went away with unread status lines")
        self._take(Command(action="stop", lost=True))

    def _take(self, command: Command) -> None:
        with self._obeying:
            self._obey(command)

    def _keep(self, command: Command) -> None:
        if command.action == "stop":
            self.report("stopped")
            os._exit(0)
        self._kept.append(command)


def start_child(name: str) -> Child:
    """To be called first in a child's main. Reads channel, runtime folder and config from the environment."""
    setproctitle.setproctitle(f"lightllm {name}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(STACKS_SIGNAL, all_threads=True)
    channel = socket.socket(fileno=int(os.environ.pop(CHANNEL_VARIABLE)))
    die_with_parent()
    if _closed(channel):
        sys.exit(1)  # the parent died before die_with_parent took effect
    runtime = RuntimeDir(os.environ[RUNTIME_VARIABLE])
    config = ServerConfig.from_json(Path(runtime.config_file).read_bytes())
    set_up_logging(name, config.log_level)
    return Child(name, channel, runtime, config)


def run_child(name: str, main: Callable[[Child], None]) -> None:
    """Runs a child's main; an error of the start is reported to the Supervisor, and the process ends with status 1."""
    child = start_child(name)
    try:
        main(child)
    except StartupError as error:
        child.report("failed", error.reason, error.remedy, final=error.final)
        sys.exit(1)
    except Exception as error:
        logging.getLogger(name).exception("%s ends because of an unexpected error", name)
        child.report("failed", f"{type(error).__name__}: {error}")
        sys.exit(1)
    child.report("stopped")


def die_with_parent() -> None:
    """Linux: SIGKILL for this process when the thread that started it dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _closed(channel: socket.socket) -> bool:
    """Whether the other end is gone."""
    try:
        return channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def set_up_logging(name: str, level: str, stream: SupportsWrite[str] | None = None) -> None:
    """`stream`: instead of standard error."""
    logging.basicConfig(
        level=level.upper(), stream=stream or sys.stderr, force=True,
        format=f"%(asctime)s %(levelname).1s {name} | %(message)s", datefmt="%H:%M:%S",
    )  # fmt: skip

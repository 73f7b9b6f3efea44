"""A command in a terminal of its own: keys in, and what the screen was told out.

with Terminal([sys.executable, "-m", "lightllm", "chat"]) as terminal:
    terminal.expect("> ")
    terminal.type("Hello\\r")
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

from lightllm.ipc.child import die_with_parent

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][0-9A-B]|\x1b[=>]|\x1b\][^\x07]*\x07|\r")
_WHERE = b"\x1b[6n"
"""prompt_toolkit asks where the cursor is; a terminal answers."""


class Terminal:
    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        size: tuple[int, int] = (40, 100),
    ) -> None:
        """size: rows and columns."""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, close_fds=True, preexec_fn=self._own_session,
            env=os.environ | {"TERM": "xterm-256color"} | dict(environment or {}),
        )  # fmt: skip
        os.close(slave)
        self._raw = b""
        self._seen = 0

    @staticmethod
    def _own_session() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
        die_with_parent()

    @property
    def raw(self) -> str:
        """All that came, with control sequences."""
        return self._raw.decode(errors="replace")

    @property
    def text(self) -> str:
        """All that came, as one would read it if nothing were drawn over."""
        return _CONTROL.sub("", self.raw)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, pattern: str, timeout: float = 60.0) -> re.Match[str]:
        """Waits for new text that matches; what lies before its end is not looked at again."""
        deadline = time.monotonic() + timeout
        while True:
            match = re.search(pattern, self.text[self._seen :])
            if match:
                self._seen += match.end()
                return match
            if not self._read(deadline - time.monotonic()):
                raise AssertionError(f"no {pattern!r} in the terminal:\n{self.text[self._seen :]}")

    def _read(self, seconds: float) -> bool:
        """Whether there may be more."""
        if seconds <= 0 or not select.select([self._master], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the command has ended
            return False
        if _WHERE in data:
            os.write(self._master, b"\x1b[1;1R")
        self._raw += data
        return bool(data)

    def wait(self, timeout: float = 30.0) -> int:
        """Reads to the end; the exit status."""
        deadline = time.monotonic() + timeout
        while self._read(deadline - time.monotonic()):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 1.0))

    def end(self, timeout: float = 30.0) -> int:
        """Types Ctrl-D until the command has ended; the exit status. One that comes between two prompts is lost."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None and time.monotonic() < deadline:
            self.type("\x04")
            self._read(0.5)
        return self.wait(max(deadline - time.monotonic(), 1.0))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

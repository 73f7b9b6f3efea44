"""A real server for tests: its own processes, a free port, its log at hand, and a check that nothing stays behind.

    with LightLLMServer(["--mock_backend", "--model_dir", str(folder)]) as server:
        httpx.get(server.url + "/health")

On a failure inside the `with` block the log is printed (pytest shows it with the failed test).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from lightllm.ipc.child import die_with_parent

_READY = re.compile(r"ready: (https?://\S+)")
SERVER_COMMAND = (sys.executable, "-m", "lightllm.server.api_server")


class LightLLMServer:
    """Starts on construction; `with` waits until it is ready and stops it at the end.

    Attributes: `process` the launch command's Popen; `url` once ready; `runtime_base` where its runtime folder lies;
    `log` everything it wrote so far.
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        command: Sequence[str] = SERVER_COMMAND,
        environment: Mapping[str, str] | None = None,
        ready_timeout: float = 120.0,
    ) -> None:
        self.url = ""
        self._ready_timeout = ready_timeout
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.children: list[psutil.Process] = []
        self.runtime_base = Path(tempfile.mkdtemp(prefix="lightllm-test-"))
        port = [] if "--port" in options else ["--port", "0"]
        self.process = subprocess.Popen(
            [*command, *port, *options],
            env=os.environ | {"LIGHTLLM_RUNTIME_BASE": str(self.runtime_base)} | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # a test runner that is killed leaves no server behind
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str, timeout: float = 30.0) -> re.Match[str]:
        """Waits until the log matches; fails at once when the server ends without it."""
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                match = re.search(pattern, "".join(self._lines))
                if match:
                    return match
                if self._ended or time.monotonic() >= deadline:
                    why = "the server ended" if self._ended else f"not within {timeout} s"
                    raise AssertionError(f"no {pattern!r} in the log ({why}):\n{''.join(self._lines)}")
                self._news.wait(deadline - time.monotonic())

    def wait_ready(self) -> str:
        """The URL, once every process is ready."""
        self.url = self.wait_for(_READY.pattern, self._ready_timeout).group(1)
        self.note_children()
        return self.url

    def note_children(self) -> list[psutil.Process]:
        """Remembers all present descendants, to be looked for after the end."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self.children = list({child.pid: child for child in [*self.children, *found]}.values())
        return self.children

    def child(self, name: str) -> psutil.Process:
        """The child process with the title `lightllm NAME`."""
        titles = []
        for child in self.note_children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it may just end
                titles.append(" ".join(child.cmdline()).strip())
                if titles[-1] == f"lightllm {name}" and child.is_running():
                    return child
        raise AssertionError(f"no process {name!r} among {titles}")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the launch command alone."""
        self.note_children()
        self.process.send_signal(number)

    def wait(self, timeout: float = 60.0) -> int:
        """Waits for the end; returns the exit code, with the log complete."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def stop(self, timeout: float = 40.0) -> int:
        """SIGTERM, then checks that nothing is left. Returns the exit code."""
        if self.process.poll() is None:
            self.send(signal.SIGTERM)
        code = self.wait(timeout)
        self.check_nothing_left()
        return code

    def check_nothing_left(self, files: bool = True) -> None:
        """No child process, and (unless the launch command was killed) no file in the runtime base or shared memory."""
        _, alive = psutil.wait_procs(self.children, timeout=3)
        alive = [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert not alive, f"left behind: {alive}\n{self.log}"
        if files:
            assert self.runtime_folders() == [], self.log
            shared = [f for child in self.children for f in Path("/dev/shm").glob(f"*_{child.pid}_*")]
            assert shared == [], self.log

    def runtime_folders(self) -> list[Path]:
        return [path for path in self.runtime_base.glob("*/*") if path.is_dir()]

    def __enter__(self) -> "LightLLMServer":
        try:
            self.wait_ready()
        except BaseException:
            self.abandon()
            raise
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        try:
            if kind is None:
                self.stop()
            else:
                print(self.log)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Ends whatever still runs, by process number, and removes the runtime base; for tests without `with`."""
        self.note_children()
        for process in (self.process, *self.children):
            if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                process.kill()
        self.process.wait()
        self._reader.join(5)
        shutil.rmtree(self.runtime_base, ignore_errors=True)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in iter(output.readline, b""):
                with self._news:
                    self._lines.append(line.decode(errors="replace"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

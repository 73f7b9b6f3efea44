"""Child processes that render chat templates, as a server sees them. May be used from several threads."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightllm.errors import LightLLMError, ServerOverloaded
from lightllm.templating import wire
from lightllm.templating.limits import Limits

MAX_PROCESSES = 2
"""Conversations that are rendered at a time; the second process is started when the first is busy."""
_PACKAGES = str(Path(__file__).resolve().parents[2])
_LAST_SECONDS = 5.0
_LARGE_BYTES = 8 * 1024 * 1024
"""A child is ended after a conversation that is longer, which gives the memory back."""


class TemplateFailure(LightLLMError):
    """A template could not do its work: `reason` says why, in a clause ("took more than ...")."""

    def __init__(self, reason: str, repeatable: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.repeatable = repeatable
        """A limit was reached, so that the same work would fail again."""


class TemplateProcess:
    """One child. It renders one conversation at a time, so it belongs to one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.loaded: set[str] = set()
        """Templates that were sent to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "lightllm.templating.worker"],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(_search_path())},
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    process_group=0,  # a Ctrl-C in a terminal is not for it
                )
            except OSError as error:
                ours.close()
                raise ServerOverloaded(
                    f"no process for the chat template can be started ({error})", retry_after=1
                ) from error
        ours.settimeout(limits.wall_seconds)
        self._channel = ours
        self._end = weakref.finalize(self, _end, ours, self._process)

    @property
    def running(self) -> bool:
        """Neither closed nor killed from outside."""
        return self._end.alive and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, task: bytes) -> dict[str, Any]:
        """The child's answer to a task (`TemplateProcesses.task`). After a `TemplateFailure` the child is gone."""
        try:
            wire.send(self._channel, task)
            received = wire.receive(self._channel)
        except TimeoutError as error:
            self.close()
            raise TemplateFailure(f"took more than {self._limits.wall_seconds:g} s") from error
        except OSError:
            received = None
        if received is None:
            raise self._how_it_ended()
        answer: dict[str, Any] = wire.decode(received)
        if len(task) > _LARGE_BYTES:
            self.close()
        if answer.get("out_of_memory"):
            self.close()
            raise TemplateFailure(f"took more than {self._limits.memory_mib} MiB of memory")
        return answer

    def close(self) -> None:
        self._end()

    def interrupt(self) -> None:
        """From another thread: the work that it does fails."""
        self._process.kill()

    def _how_it_ended(self) -> TemplateFailure:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_SECONDS)
        status = self._process.returncode
        self.close()
        if status == -signal.SIGPROF:
            return TemplateFailure(f"took more than {self._limits.cpu_seconds:g} s of processor time")
        how = f"by {signal.Signals(-status).name}" if status and status < 0 else f"with exit code {status}"
        return TemplateFailure(f"ended its process {how}", repeatable=False)


class TemplateProcesses:
    """The children of one model's templates, started when they are needed."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._idle: list[TemplateProcess] = []
        self._working: set[TemplateProcess] = set()
        self.closings = 0
        """How often `close` was called: a failure during which it grew is no fault of the template."""
        self._changed = threading.Condition()

    @property
    def busy(self) -> int:
        """How many render now."""
        return len(self._working)

    @property
    def idle_pids(self) -> list[int]:
        return [process.pid for process in self._idle]

    def task(self, **fields: Any) -> bytes:
        """Raises `TypeError`, `ValueError` or `RecursionError` for what is no plain JSON data."""
        return wire.encode({**fields, "limits": dataclasses.asdict(self.limits)})

    @contextlib.contextmanager
    def one(self) -> Iterator[TemplateProcess]:
        """A child for one piece of work; waits while all are busy."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle or self.busy < MAX_PROCESSES)
            self._idle = [process for process in self._idle if process.running]
            process = self._idle.pop() if self._idle else TemplateProcess(self.limits)
            self._working.add(process)
        try:
            yield process
        finally:
            with self._changed:
                self._working.remove(process)
                if process.running:
                    self._idle.append(process)
                self._changed.notify()

    def close(self) -> None:
        """Ends all; what is being rendered fails."""
        with self._changed:
            self.closings += 1
            while self._idle:
                self._idle.pop().close()
            for process in self._working:
                process.interrupt()


def _search_path() -> list[str]:
    """This package first, whatever folder the server was started in."""
    return [_PACKAGES, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]


def _end(channel: socket.socket, process: subprocess.Popen[bytes]) -> None:
    channel.close()
    process.kill()
    process.wait()

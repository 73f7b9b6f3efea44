"""Processes of a server that start and end together, and when they are started again.

A group is one process, or all Model Backends of a machine: a rank alone is of no use to the others.

               all of them are
    starting ------------------> ready
      ^   |                        |  `fail`: one of them hangs
      |   | one ends, says that    |    \
      |   | it fails, or is late   |     v
      |   |                        |   failed    it still runs, and is killed
      |   v                        v     |
      |  (the others are killed) <-------'
      |   |
      |   +--> given up    too often lately, or of no use: `GroupLost`, and the server ends
      |   v
      '- waiting    none of it runs; the longer, the more often in succession it did not last

Node 0 can have the ranks of another node ended at any time (`end`). They are started again without a pause, which does not
count: node 0 counts.

The Supervisor logs how a process ended and when it is started again, each process what it does until it is ready, and the
group when it is ready again.
"""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Callable, Sequence

from lightllm.errors import LightLLMError
from lightllm.protocol.control import Status
from lightllm.server.child_process import ChildProcess, find_cause
from lightllm.server.plan import ChildSpec

log = logging.getLogger("supervisor")

WINDOW_SECONDS = 300.0
"""Restarts further back are forgotten."""
PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds before a restart: of what had lasted, of what then did not last, and so on; the last holds for all that follow."""
LASTING_SECONDS = 10.0
"""What was ready for so long is started again at once, however often that happens: a pause is for what cannot go on."""
SETTLE_SECONDS = 0.2
"""After a first sign of failure: how long to wait for the others', to name the cause and not a consequence."""


class GroupLost(LightLLMError):
    """A process has ended, and is not started again."""

    def __init__(self, cause: ChildProcess, restarts: int) -> None:
        self.cause = cause
        self.restarts = restarts
        """Within the window."""
        super().__init__(f"{cause.name} has ended")


class ProcessGroup:
    def __init__(
        self,
        specs: Sequence[ChildSpec],
        start: Callable[[ChildSpec], ChildProcess],
        limit: float,
        startup_timeout: float,
    ) -> None:
        """limit: restarts within the window; startup_timeout: seconds from a restart until all must be ready."""
        self.name = specs[0].group
        self.serves_http = specs[0].serves_http
        self._specs = specs
        self._start_child = start
        self._limit = limit
        self._startup_timeout = startup_timeout
        self._restarts: collections.deque[float] = collections.deque()
        self._ready_since = -math.inf
        self._brief = 0
        """Lives in succession that did not last."""
        self._ended = 0.0
        """When it was last ready, or first failed to be."""
        self._due: float | None = None
        """When it is to be started again; None: it is not waiting."""
        self._deadline = math.inf
        """Until when it must be ready; infinite: it has been."""
        self._order = ""
        """Why it is to be ended although nothing is wrong with it; "": it is not."""
        self._order_due = math.inf
        self.children = [start(spec) for spec in specs]

    @property
    def ready(self) -> bool:
        return self._due is None and all(child.ready for child in self.children)

    @property
    def waiting(self) -> bool:
        """None of it runs, and it will be started again."""
        return self._due is not None

    @property
    def restarts(self) -> int:
        """Of late; those further back than the window may not have been forgotten yet."""
        return len(self._restarts)

    @property
    def next_event(self) -> float:
        """When `supervise` has something to do although no process has said or done anything."""
        return min(self._deadline, self._order_due) if self._due is None else self._due

    def supervise(self, now: float) -> str | None:
        """One step: "ended" (none of it runs now), "started", "ready", or None: nothing has changed. now: `time.monotonic()`.
        Raises `GroupLost`."""
        if self._due is not None:
            if now < self._due:
                return None
            self._due = None
            self._deadline = now + self._startup_timeout
            self.children = [self._start_child(spec) for spec in self._specs]
            return "started"
        if (cause := find_cause(self.children)) is not None:
            return self._end(cause, now)
        if now >= self._order_due:
            log.warning("%s: %s, and so %s started again", self.name, self._order, _what(self.children))
            return self._wait(now, 0.0)
        if self._deadline < math.inf:
            if self.ready:
                self._deadline, self._ready_since = math.inf, now
                log.info("%s: ready again, %.1f s after the end", self.name, now - self._ended)
                return "ready"
            if now >= self._deadline:
                late = next(child for child in self.children if not child.ready)
                self.fail(late.name, f"not ready after {self._startup_timeout:.0f} s")
        return None

    def fail(self, name: str, reason: str) -> None:
        """A process counts as failed, whatever it does: `supervise` ends the group."""
        for child in self.children:
            if child.name == name:
                child.failure = Status(name, "failed", reason)

    def fail_for(self, name: str, reason: str) -> None:
        """As `fail`, of whatever it is that has failed and without which the group is of no use."""
        self.children[0].failure = Status(name, "failed", reason)

    def end(self, reason: str, now: float) -> None:
        """None of it is of any use any more: `supervise` ends it, and starts it again, unless one of its processes is found to
        have ended. now: `time.monotonic()`."""
        self._order = reason
        self._order_due = min(self._order_due, now + SETTLE_SECONDS)

    def _end(self, cause: ChildProcess, now: float) -> str:
        while self._restarts and self._restarts[0] < now - WINDOW_SECONDS:
            self._restarts.popleft()
        count = len(self._restarts)
        if count >= self._limit or (cause.failure is not None and cause.failure.final):
            raise GroupLost(cause, count)
        reason = f"failed: {cause.failure.detail}" if cause.failure else cause.how_it_ended()
        lasted = self._deadline == math.inf and now - self._ready_since >= LASTING_SECONDS
        self._brief = 0 if lasted else self._brief + 1
        pause = PAUSES[min(self._brief, len(PAUSES) - 1)]
        self._restarts.append(now)
        when = f" in {pause:.1f} s" if pause else ""
        name = cause.failure.process if cause.failure else cause.name
        what = "all ranks are" if name != cause.name else _what(self.children)
        log.error("%s %s: %s started again%s", name, reason, what, when)
        return self._wait(now, pause)

    def _wait(self, now: float, pause: float) -> str:
        """All of it ends now, and is started again after `pause` seconds."""
        self.kill()
        if self._deadline == math.inf:  # it was ready
            self._ended = now
        self._due = now + pause
        self._deadline = math.inf
        self._order, self._order_due = "", math.inf
        return "ended"

    def kill(self) -> None:
        """None of it runs afterwards."""
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()
            child.close()


def _what(children: Sequence[ChildProcess]) -> str:
    return "it is" if len(children) == 1 else f"all {len(children)} of its group are"

"""The main loop of processes that look at something every so often, and serve nobody."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable

from lightllm.ipc.child import Child
from lightllm.protocol.control import Command


def run_every(child: Child, seconds: float, work: Callable[[], None]) -> None:
    """Works at once, reports "ready", and works again every `seconds` until the Supervisor says stop (or is gone). It beats each
    time, so let that be a second at most. What was missed while nothing ran is not made up for."""
    stop_read, stop_write = os.pipe()

    def obey(command: Command) -> None:
        if command.action == "stop":
            os.write(stop_write, b"s")

    child.on_command(obey)
    due = time.monotonic()
    work()
    child.beat.beat()
    child.report("ready")
    with selectors.DefaultSelector() as selector:
        selector.register(stop_read, selectors.EVENT_READ)
        while True:
            due = max(due + seconds, time.monotonic())
            if selector.select(due - time.monotonic()):
                return
            child.beat.beat()
            work()

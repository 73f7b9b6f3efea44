"""The Health Server: looks at all others twice a second, and writes down whether the server serves.

    beats of all processes, the Router's snapshot, counters of tokens, the Supervisor's list of processes --> here
    here --Health--> Http Servers, which answer /health, /readiness and /liveness by it

It ends nothing: that is the Supervisor's, which judges by the same beats and needs nobody for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from lightllm.config import ServerConfig
from lightllm.health.token_watch import TokenWatch, health_timeout
from lightllm.http.metric_store import read_all
from lightllm.ipc.child import Child
from lightllm.ipc.health import HealthWriter, ProcessListReader, judge
from lightllm.ipc.periodic import run_every
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import SnapshotReader
from lightllm.ipc.stalls import Stall, StallWatch
from lightllm.protocol.health import Health
from lightllm.protocol.metrics import FIRST_TOKEN_SECONDS, HTTP_METRICS, INTER_TOKEN_SECONDS

log = logging.getLogger("health")

_SECONDS = 0.5
"""Between two looks."""
_TOKENS = (FIRST_TOKEN_SECONDS, INTER_TOKEN_SECONDS)
"""Histograms of which one counts whenever tokens of a request arrive in its Http Server."""


def main(child: Child) -> None:
    """Runs until the Supervisor says stop (or is gone)."""
    server = HealthServer(child.runtime, child.config)
    writer = HealthWriter(child.runtime.health_file, server.count)
    run_every(child, _SECONDS, lambda: writer.write(server.look(time.monotonic())))


class HealthServer:
    """One server, and what was last seen of it."""

    def __init__(self, runtime: RuntimeDir, config: ServerConfig) -> None:
        self._processes = ProcessListReader(runtime.processes_file)
        self._snapshot = SnapshotReader(runtime.snapshot_file)
        self._metrics_dir = runtime.metrics_dir
        self._stalls = StallWatch(runtime, config)
        self._tokens = TokenWatch(health_timeout(config))
        self._hanging: dict[str, Stall] = {}
        self._without_tokens = False

    @property
    def count(self) -> int:
        """Of processes, none of which comes later."""
        return len(self._processes.read())

    def look(self, now: float) -> Health:
        """now: `time.monotonic()`. What has changed for the worse or the better since the last look is logged."""
        resumed = self._stalls.resumed
        stalls = self._stalls.check(now)
        if self._stalls.resumed != resumed:
            log.warning("this process stood still for some seconds, or the whole machine did")
        snapshot = self._snapshot.read()
        progress = (snapshot.prompt_tokens, self._delivered() if snapshot.running else 0.0)
        seconds = self._tokens.check(snapshot.running, progress, now, self._stalls.resumed)
        health = judge(self._processes.read(), snapshot, stalls, now, seconds)
        self._log(health, stalls, seconds)
        return health

    def _delivered(self) -> float:
        values = read_all(self._metrics_dir, HTTP_METRICS)
        return sum(sum(values[metric.name][1:]) for metric in _TOKENS)

    def _log(self, health: Health, stalls: Sequence[Stall], no_token_seconds: float) -> None:
        marked = {process.name for process in health.processes if process.state == "hanging"}
        hanging = {stall.process: stall for stall in stalls if stall.process in marked}
        for name in self._hanging.keys() - hanging.keys():
            log.warning("%s makes progress again", name)
        for name in hanging.keys() - self._hanging.keys():
            answers = "" if hanging[name].observer else ": /health answers 503 until it does"
            log.error("%s%s", hanging[name], answers)
        self._hanging = hanging
        if bool(no_token_seconds) != self._without_tokens:
            self._without_tokens = bool(no_token_seconds)
            if no_token_seconds:
                log.error(
                    "requests run, and no token has come for %.0f s (--health_timeout): /health answers 503 "
                    "until one does",
                    no_token_seconds,
                )
            else:
                log.warning("tokens come again, or no request runs")

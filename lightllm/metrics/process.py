"""The Metric Server: adds up once a second what all others have counted, and pushes it to a gateway.

    counters of the Http Servers, the Router's snapshot, the Health Server's judgement --shared memory--> here
    here --a sample a second--> shared memory --> Http Servers, which answer /metrics/history by it
    here --Prometheus' text, every --push_interval--> --metric_gateway

Nobody waits for it: who counts adds to a number in shared memory of its own, and /metrics is read from there. So all
counters go on while it is started again, and the history has a gap of those seconds.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lightllm.ipc.child import Child
from lightllm.ipc.health import OLD_SECONDS, HealthReader
from lightllm.ipc.metric_history import HistoryWriter
from lightllm.ipc.periodic import run_every
from lightllm.ipc.snapshot import Snapshot, SnapshotReader
from lightllm.metrics.sampler import Sampler

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = 1.0
"""Between two samples."""


def main(child: Child) -> None:
    """Runs until the Supervisor says stop (or is gone)."""
    history = HistoryWriter(child.runtime.history_file)
    snapshots = SnapshotReader(child.runtime.snapshot_file)
    judgements = HealthReader(child.runtime.health_file)
    sampler = Sampler(child.runtime.metrics_dir)

    def healthy(snapshot: Snapshot) -> bool:
        health = judgements.read()
        if health is None or time.monotonic() - health.judged > OLD_SECONDS:
            return bool(snapshot.ready)
        return health.status == "ok"

    def work() -> None:
        snapshot = snapshots.read()
        sample = sampler.sample(snapshot, healthy(snapshot), time.monotonic(), time.time())
        if sample is not None:
            history.append(sample)

    if child.config.metric_gateway is not None:
        from lightllm.http.exposition import collect  # loads prometheus_client, which only a push needs
        from lightllm.metrics.push import Pusher

        def collected() -> CollectorRegistry:
            snapshot = snapshots.read()
            return collect(child.runtime, snapshot, healthy(snapshot), (child.config.model_name or [""])[0])

        Pusher(child.config, collected).start()
    run_every(child, _SECONDS, work)

"""The Health Server's process, beside a Router, a Supervisor and Http Servers that the test plays."""

from __future__ import annotations

import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.child_processes import ChildProcesses

from lightllm.config import ServerConfig
from lightllm.http.metric_store import MetricStore
from lightllm.ipc.health import HealthReader, ProcessListWriter
from lightllm.ipc.snapshot import Snapshot, SnapshotWriter
from lightllm.protocol.health import Health, ProcessState
from lightllm.protocol.metrics import HTTP_METRICS, INTER_TOKEN_SECONDS

SECONDS = 60.0


class Server:
    def __init__(self, folder: Path) -> None:
        self.children = ChildProcesses(folder, ServerConfig(health_timeout=2.0))
        self.runtime = self.children.runtime
        self.snapshots = SnapshotWriter(self.runtime.snapshot_file)
        self.list = ProcessListWriter(self.runtime.processes_file, 2)
        self.list.write(
            [ProcessState("router", "ready"), ProcessState("backend-0", "loading", "weights 40%")]
        )
        self.store = MetricStore(self.runtime.metrics_dir / "http-0", HTTP_METRICS)
        self.log = folder / "log"
        self.process: subprocess.Popen[bytes] = self.children.start("lightllm.health", log=self.log)
        self.children.wait_until(self.process, "ready")
        self.reader = HealthReader(self.runtime.health_file)

    def wait_for(self, condition: Callable[[Health], object]) -> Health:
        end = time.monotonic() + SECONDS
        while True:
            health = self.reader.read()
            if health is not None and condition(health):
                return health
            assert time.monotonic() < end, health
            time.sleep(0.02)

    def beat(self, process: str, ago: float) -> None:
        (self.runtime.beats_dir / process).write_bytes(struct.pack("<d", time.monotonic() - ago))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("t"))
    yield server
    assert server.children.stop(server.process) == 0
    server.children.close()


def test_it_is_ready_with_its_first_judgement_and_judges_again_and_again(server: Server) -> None:
    first = server.reader.read()
    assert first is not None
    assert (first.status, first.reason) == ("starting", "backend-0 is loading: weights 40%")
    assert [process.name for process in first.processes] == ["router", "backend-0"]
    server.wait_for(lambda health: health.judged > first.judged)


def test_what_serves_is_ok_and_what_hangs_is_named_until_it_goes_on(server: Server) -> None:
    server.snapshots.write(Snapshot(ready=1))
    server.list.write([ProcessState("router", "ready"), ProcessState("backend-0", "ready")])
    assert server.wait_for(lambda health: health.status == "ok").reason == ""
    server.beat("backend-0", 8.5)
    health = server.wait_for(lambda health: health.status == "unhealthy")
    assert health.reason.startswith("backend-0 has made no progress for ")
    assert [process.state for process in health.processes] == ["ready", "hanging"]
    server.beat("backend-0", -SECONDS)
    server.wait_for(lambda health: health.status == "ok")
    log = server.log.read_text()
    assert log.count("backend-0 has made no progress") == log.count("backend-0 makes progress again") == 1


def test_requests_that_run_without_a_token_are_told_until_one_comes(server: Server) -> None:
    server.snapshots.write(Snapshot(ready=1))
    server.wait_for(lambda health: health.status == "ok")
    server.snapshots.write(Snapshot(ready=1, running=1))
    health = server.wait_for(lambda health: health.status == "unhealthy")
    assert health.reason.startswith("requests run, and no token has come for ")
    server.store.observe(INTER_TOKEN_SECONDS, 0.5)  # in an Http Server: the end of the way
    server.wait_for(lambda health: health.status == "ok")
    server.wait_for(lambda health: health.status == "unhealthy")
    server.snapshots.write(Snapshot(ready=1, running=1, prompt_tokens=512))
    server.wait_for(lambda health: health.status == "ok")
    server.snapshots.write(Snapshot(ready=1))
    log = server.log.read_text()
    assert log.count("no token has come for") == log.count("tokens come again") == 2

"""The Metric Server's process: samples, and pushes to a gateway that the test plays."""

from __future__ import annotations

import base64
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.child_processes import ChildProcesses

from lightllm.config import ServerConfig
from lightllm.http.metric_store import MetricStore
from lightllm.ipc.health import HealthWriter
from lightllm.ipc.metric_history import read_history
from lightllm.ipc.snapshot import Snapshot, SnapshotWriter
from lightllm.protocol.health import Health
from lightllm.protocol.metrics import HTTP_METRICS, REQUEST_COUNT

SECONDS = 60.0


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Gateway:
    """`pushes`: (method, path, headers, text) of each; `status`: what it answers; silent: it does not."""

    def __init__(self) -> None:
        self.pushes: list[tuple[str, str, dict[str, str], str]] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                gateway.pushes.append((self.command, self.path, dict(self.headers), text))
                gateway.answers.wait(SECONDS)
                self.send_response(gateway.status)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ChildProcesses]]:
    """Starts a Metric Server with these options, beside counters and a judgement."""
    started: list[ChildProcesses] = []

    def start(**options: object) -> ChildProcesses:
        children = ChildProcesses(tmp_path, ServerConfig(**options))  # type: ignore[arg-type]
        started.append(children)
        runtime = children.runtime
        for worker, count in enumerate((3, 4)):
            MetricStore(runtime.metrics_dir / f"http-{worker}", HTTP_METRICS).add(REQUEST_COUNT, count)
        SnapshotWriter(runtime.snapshot_file).write(Snapshot(ready=1, output_tokens=99, running=2))
        HealthWriter(runtime.health_file, 1).write(Health("ok", "", [], time.monotonic()))
        process = children.start("lightllm.metrics", log=tmp_path / "log")
        children.wait_until(process, "ready")
        return children

    yield start
    for children in started:
        children.close()


def values_of(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_a_gateway_gets_all_metrics_with_the_labels_of_this_server(
    start: Callable[..., ChildProcesses], gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the gateway fails, samples are taken, and the log says so once; proxies are no way to it."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("USERNAME", "push")
    monkeypatch.setenv("PASSWORD", "geheim")
    gateway.status = 500
    labels = ["instance=a/b", "zone=1"]
    children = start(
        metric_gateway=gateway.address, push_interval=0.1, grouping_key=labels, enable_monitor_auth=True
    )
    wait_for(lambda: len(gateway.pushes) > 3)
    wait_for(lambda: len(read_history(children.runtime.history_file)) >= 2)
    gateway.status = 200
    wait_for(lambda: "metrics are pushed again, after" in (tmp_path / "log").read_text())
    method, path, headers, text = gateway.pushes[-1]
    encoded = base64.urlsafe_b64encode(b"a/b").decode()
    assert (method, path) == ("PUT", f"/metrics/job/lightllm/instance@base64/{encoded}/zone/1")
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"push:geheim").decode()
    values = values_of(text)
    assert values["lightllm_request_count_total"] == 7 and values["lightllm_output_tokens_total"] == 99
    assert values["lightllm_ready"] == 1 and abs(values["process_start_time_seconds"] - time.time()) < 600
    log = (tmp_path / "log").read_text()
    assert log.count("metrics cannot be pushed to") == log.count("Internal Server Error") == 1
    assert "geheim" not in log


def test_a_gateway_that_does_not_answer_holds_up_neither_samples_nor_the_end(
    start: Callable[..., ChildProcesses], gateway: Gateway
) -> None:
    gateway.answers.clear()
    children = start(metric_gateway=f"http://{gateway.address}", job_name="other")
    wait_for(lambda: gateway.pushes)
    assert gateway.pushes[0][1] == "/metrics/job/other"
    before = len(read_history(children.runtime.history_file))
    wait_for(lambda: len(read_history(children.runtime.history_file)) >= before + 2)
    sample = read_history(children.runtime.history_file)[-1]
    assert (sample.running, sample.healthy) == (2, 1)
    begin = time.monotonic()
    assert [children.stop(process) for process in children.processes] == [0]
    assert time.monotonic() - begin < 5  # and not the ten seconds that the gateway may take

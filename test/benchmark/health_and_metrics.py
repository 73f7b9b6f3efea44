"""What watching a server costs: an update of a metric in shared memory, and by message to a process that owns them all; how
fast the health routes answer; processor time and memory of Health Server and Metric Server.

    python test/benchmark/health_and_metrics.py [--seconds 30] [--streams 16]

Starts a server of its own with the mock backend.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import httpx
import msgspec
import psutil
import zmq
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.watched_streams import finish, start_streams

from lightllm.http.exposition import exposition
from lightllm.http.metric_store import MetricStore, read_all
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol.metrics import HTTP_METRICS, INTER_TOKEN_SECONDS

UPDATES = 100_000
OBSERVERS = ("health", "metrics")


class Delta(msgspec.Struct, array_like=True):
    """An update as a message."""

    metric: int
    value: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement of a server")
    parser.add_argument("--streams", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_counting(Path(folder))
        measure_server(Path(folder), options.seconds, options.streams)


# -- counting


def measure_counting(folder: Path) -> None:
    runtime = RuntimeDir.create(folder)
    stores = [MetricStore(runtime.metrics_dir / f"http-{worker}", HTTP_METRICS) for worker in range(4)]
    shared = cpu_us(lambda: stores[0].observe(INTER_TOKEN_SECONDS, 0.01), UPDATES)
    print(f"one update of a histogram: shared memory {shared:.2f} us")
    context = zmq.Context()
    pull, push = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for end in (pull, push):
        end.setsockopt(zmq.RCVHWM if end is pull else zmq.SNDHWM, 0)
    pull.bind(f"ipc://{folder}/metrics")
    push.connect(f"ipc://{folder}/metrics")
    for batch in (1, 32):
        sent, received = cost_of_messages(push, pull, stores[1], batch)
        print(
            f"  as messages of {batch}: {sent:.2f} us where it happens, {received:.2f} us in a process that counts"
        )
    context.destroy(linger=0)
    sums = cpu_us(lambda: read_all(runtime.metrics_dir, HTTP_METRICS), 200)
    text = cpu_us(lambda: exposition(runtime, Snapshot(), True, "model"), 100)
    print(f"sums over 4 Http Servers {sums / 1000:.2f} ms, with the text of /metrics {text / 1000:.2f} ms")
    runtime.remove()


def cost_of_messages(
    push: zmq.Socket[bytes], pull: zmq.Socket[bytes], store: MetricStore, batch: int
) -> tuple[float, float]:
    """Processor time of an update in microseconds, in the sender and in the receiver, ZMQ's own threads included."""
    count = UPDATES // 4 // batch
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(list[Delta])
    deltas: list[Delta] = []

    def send() -> None:
        for _ in range(batch):
            deltas.append(Delta(7, 0.01))
        push.send(encoder.encode(deltas))
        deltas.clear()

    def receive() -> None:
        for delta in decoder.decode(pull.recv()):
            store.observe(INTER_TOKEN_SECONDS, delta.value)

    return cpu_us(send, count) / batch, cpu_us(receive, count) / batch


def cpu_us(work: Callable[[], object], count: int) -> float:
    begin = time.process_time()
    for _ in range(count):
        work()
    return (time.process_time() - begin) / count * 1e6


# -- a server


def measure_server(folder: Path, seconds: float, streams: int) -> None:
    model = make_model_folder(folder / "tiny")
    options = ["--model_dir", str(model), "--mock_backend", "step_ms=10", "--disable_log_stats"]
    with LightLLMServer(options) as server:
        for name in OBSERVERS:
            process = server.child(name)
            spent, memory = cpu_seconds(process), process.memory_full_info()
            print(
                f"{name}: {spent:.2f} s of CPU to start, {memory.uss / 2**20:.1f} MiB of its own, {memory.rss / 2**20:.1f} MiB resident"
            )
        print(f"idle for {seconds:.0f} s: {shares(server, seconds)} of a core")
        print_latencies("idle", server)
        body = {"inputs": "hello", "parameters": {"max_new_tokens": 1000, "ignore_eos": True}}
        running = start_streams(server.url, [("/generate_stream", body)] * streams)
        time.sleep(1)
        print_latencies(f"{streams} streams", server)
        print(f"{streams} streams: {shares(server, min(seconds, 8.0))} of a core")
        finish(running)
        server.child("health").suspend()
        time.sleep(4)  # until its judgement is old
        print_latencies("Health Server stopped", server)
        server.child("health").resume()
        time.sleep(1)
        process = server.child("backend-0")
        process.suspend()
        begin = time.monotonic()
        while httpx.get(server.url + "/health").status_code == 200:
            time.sleep(0.01)
        print(f"a Model Backend that stands still is told after {time.monotonic() - begin:.1f} s")
        process.resume()


def print_latencies(what: str, server: LightLLMServer) -> None:
    """Milliseconds over one connection, of 1000 requests each, one after the other."""
    for route in ("/health", "/readiness", "/liveness"):
        spent = cpu_seconds(server.child("http-0"))
        times = latencies(server.url, route, 1000)
        spent = cpu_seconds(server.child("http-0")) - spent
        cut = statistics.quantiles(times, n=100)
        print(
            f"{what}: {route} p50 {cut[49]:.2f} ms, p99 {cut[98]:.2f} ms, longest {max(times):.2f} ms; "
            f"all that the Http Server computed meanwhile {spent:.2f} ms a request"
        )


def latencies(url: str, route: str, count: int) -> list[float]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        connection.request("GET", route)
        assert connection.getresponse().read()
        times.append((time.perf_counter() - begin) * 1000)
    connection.close()
    return times


def shares(server: LightLLMServer, seconds: float) -> str:
    before = [cpu_seconds(server.child(name)) for name in OBSERVERS]
    threading.Event().wait(seconds)
    spent = [cpu_seconds(server.child(name)) - then for name, then in zip(OBSERVERS, before, strict=True)]
    parts = [f"{name} {100 * s / seconds:.2f} %" for name, s in zip(OBSERVERS, spent, strict=True)]
    return f"{', '.join(parts)}, together {100 * sum(spent) / seconds:.2f} %"


def cpu_seconds(process: psutil.Process) -> float:
    """From the scheduler's own count: times in ticks of 10 ms are too coarse here."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


if __name__ == "__main__":
    main()

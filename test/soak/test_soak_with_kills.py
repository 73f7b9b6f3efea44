"""200 streams for an hour, a third of them cut off, and every five minutes one process is killed: answers stay whole, and
memory, descriptors, threads and shared memory stay what they were.

SOAK_SECONDS, SOAK_KILL_SECONDS: how long, and how often (3600, 300).
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from support.process_usage import wait_until_idle
from support.server import LightLLMServer
from support.stream_load import LoadReport, run_load
from support.watched_streams import kill, metric, wait_until

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SOAK_SECONDS", "3600"))
KILL_SECONDS = float(os.environ.get("SOAK_KILL_SECONDS", "300"))
CLIENTS = 200
SAMPLE_SECONDS = min(10.0, KILL_SECONDS / 10)
WARM_SECONDS = 0.4 * KILL_SECONDS
"""After which a process has filled its caches and pools: growth is measured from there."""
GROWTH_KIB, GROWTH_DESCRIPTORS, GROWTH_THREADS = 60_000, 8, 2
TURN = ("router", "detokenizer", "http-1", "backend-0", "metrics", "health")
OPTIONS = [
    "--model_name", "demo", "--max_total_token_num", "20000", "--running_max_req_size", "128", "--httpserver_workers", "2",
    "--max_restarts", "1000", "--disable_log_stats",
]  # fmt: skip


class Held(NamedTuple):
    """By one process. Sockets of clients are no leak: they are not counted."""

    resident: int
    """KiB that are its own."""
    descriptors: int
    threads: int


class Record:
    """What every process held, from its start to its end."""

    def __init__(self, server: LightLLMServer) -> None:
        self.of: dict[tuple[str, int], list[tuple[float, Held]]] = defaultdict(list)
        """By name and process number: seconds since it was first seen, and what it held then."""
        self.shared: list[int] = []
        """Bytes of the server's files in shared memory."""
        self._server = server
        self._born: dict[int, float] = {}

    def sample(self) -> None:
        shared = 0
        for process in [psutil.Process(self._server.process.pid), *self._server.note_children()]:
            try:
                name = " ".join(process.cmdline()).strip().removeprefix("lightllm ")
                memory = process.memory_info()
                # The least of several counts: a connection may come or go between two of them.
                descriptors = min(process.num_fds() - len(process.net_connections("tcp")) for _ in range(5))
                held = Held((memory.rss - memory.shared) >> 10, descriptors, process.num_threads())
            except psutil.Error:
                continue
            age = time.monotonic() - self._born.setdefault(process.pid, time.monotonic())
            self.of[name[:40], process.pid].append((age, held))
            shared += sum(size_of(path) for path in Path("/dev/shm").glob(f"*_{process.pid}_*"))
        self.shared.append(shared)

    def growth(self) -> dict[tuple[str, int], tuple[Held, Held]]:
        """Of each process that was there long enough: what it held when it was warm, and at most in the last third after that."""
        found = {}
        for key, samples in self.of.items():
            warm = [held for age, held in samples if age >= WARM_SECONDS]
            if len(warm) > 3:
                last = warm[-len(warm) // 3 :]
                found[key] = warm[0], Held(*(max(values) for values in zip(*last, strict=True)))
        return found


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_nothing_grows_while_processes_are_killed_now_and_then() -> None:
    with LightLLMServer(OPTIONS) as server:
        record, report = Record(server), LoadReport()
        load = threading.Thread(
            target=lambda: asyncio.run(
                run_load(server.url, "demo", CLIENTS, SECONDS, 0.33, constrained_share=0.1, report=report)
            ),
            daemon=True,
        )
        load.start()
        begin, kills = time.monotonic(), 0
        while load.is_alive():
            load.join(SAMPLE_SECONDS)
            record.sample()
            passed = time.monotonic() - begin
            if passed > (kills + 1) * KILL_SECONDS and passed < SECONDS - KILL_SECONDS / 2:
                name = TURN[kills % len(TURN)]
                # Connections of other processes are not those of clients.
                kill(server.child(name), report.lost_ports if name.startswith("http-") else set())
                kills += 1
                print(f"{passed:.0f} s: {name} killed; {dict(report.outcomes)}", flush=True)
        wait_until_idle(server.url, 60)
        wait_until(lambda: metric(server, "lightllm_slots_used") == 0, "slots stay in use")
    print(f"{kills} kills, {dict(report.outcomes)}, {report.tokens} tokens, {len(report.problems)} problems")
    print(
        f"shared memory {record.shared[len(record.shared) // 3] >> 10} KiB, at the end {record.shared[-1] >> 10}"
    )
    grown = record.growth()
    for (name, pid), (warm, last) in sorted(grown.items()):
        print(f"  {name} ({pid}): {warm} -> {last}")
    assert report.problems == []
    assert (
        report.outcomes["complete"] > CLIENTS
        and report.outcomes["cancelled"] > 0
        and kills >= min(5, SECONDS // KILL_SECONDS - 1)
    )
    assert max(record.shared) <= 1.05 * record.shared[len(record.shared) // 3]
    for key, (warm, last) in grown.items():
        assert last.resident <= warm.resident + GROWTH_KIB, key
        assert last.descriptors <= warm.descriptors + GROWTH_DESCRIPTORS, key
        assert last.threads <= warm.threads + GROWTH_THREADS, key

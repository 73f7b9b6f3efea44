"""What an Http Server answers to /health, /readiness and /liveness: by the Health Server's judgement, or by its own."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator

import httpx
import pytest
from support.fake_engine import FakeEngine
from support.metrics import samples

from lightllm.ipc.health import HealthWriter, ProcessListWriter
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.health import Health, ProcessState

ROUTES = ("/health", "/healthz", "/ping", "/readiness", "/liveness")


@pytest.fixture(scope="module")
def records(runtime: RuntimeDir) -> tuple[HealthWriter, ProcessListWriter]:
    return HealthWriter(runtime.health_file, 3), ProcessListWriter(runtime.processes_file, 3)


@pytest.fixture
def judged(records: tuple[HealthWriter, ProcessListWriter]) -> Iterator[HealthWriter]:
    """What the Health Server writes; afterwards it has not done so for long."""
    yield records[0]
    records[0].write(Health("ok", "", [], time.monotonic() - 1e6))


@pytest.fixture
def listed(records: tuple[HealthWriter, ProcessListWriter]) -> Iterator[ProcessListWriter]:
    """What the Supervisor writes; afterwards nothing."""
    yield records[1]
    records[1].write([])


def beat(engine: FakeEngine, process: str, ago: float) -> None:
    folder = engine.runtime.beats_dir
    folder.mkdir(exist_ok=True)
    (folder / process).write_bytes(struct.pack("<d", time.monotonic() - ago))


def check_healthy(client: httpx.Client, reason: str = "") -> None:
    """reason: why it is not."""
    code = 503 if reason else 200
    health = client.get("/health")
    assert health.status_code == client.get("/readiness").status_code == code
    assert health.json()["status"] == ("unhealthy" if reason else "ok")
    assert client.get("/liveness").status_code == 200
    assert samples(client.get("/metrics").text)["lightllm_ready"] == float(not reason)
    assert re.match(reason, health.json()["reason"])


@pytest.mark.parametrize("process", ["backend-0", "router", "detokenizer", "http-1"])
def test_a_process_that_does_not_run_makes_the_server_unhealthy(
    client: httpx.Client, engine: FakeEngine, process: str
) -> None:
    engine.ready()
    try:
        beat(engine, process, 9)
        check_healthy(client, f"{process} has made no progress for 9 s$")
        beat(engine, process, 3)
        check_healthy(client)
    finally:
        (engine.runtime.beats_dir / process).unlink()


@pytest.mark.parametrize(("in_flight", "process"), [(1, "backend-0"), (0, "router")])
def test_a_round_that_takes_too_long_makes_the_server_unhealthy(
    client: httpx.Client, engine: FakeEngine, in_flight: int, process: str
) -> None:
    """A Router that has work, and hands out no round, is to blame itself."""
    engine.ready(round_due_since=time.monotonic() - 70, in_flight_rounds=in_flight)
    check_healthy(client, rf"{process} has made no progress for 7\d s$")
    engine.ready(round_due_since=time.monotonic() - 30, in_flight_rounds=in_flight)
    check_healthy(client)
    engine.ready(round_due_since=0, in_flight_rounds=0)
    check_healthy(client)


def test_the_answer_is_the_health_servers(
    client: httpx.Client, engine: FakeEngine, judged: HealthWriter
) -> None:
    backend = ProcessState("backend-0", "hanging", "no sign of life for 9 s", restarts=2)
    reason = "backend-0 has made no progress for 9 s"
    for _ in range(2):  # there are two places for judgements, which take turns
        judged.write(
            Health("unhealthy", reason, [ProcessState("router", "ready"), backend], time.monotonic())
        )
        for route in ROUTES:
            response = client.get(route)
            alive = route == "/liveness"
            assert response.status_code == (200 if alive else 503)
            body = response.json()
            assert body.pop("message", "Error") == "Error"
            processes = [
                {"name": "router", "state": "ready"},
                {"name": "backend-0", "state": "hanging", "detail": "no sign of life for 9 s", "restarts": 2},
            ]
            assert body == {
                "status": "ok" if alive else "unhealthy",
                "reason": reason,
                "processes": processes,
            }
        judged.write(Health("ok", "", [ProcessState("router", "ready")], time.monotonic()))
        body = client.get("/health").json()
        assert body == {"message": "Ok", "status": "ok", "reason": "", "processes": [{"name": "router", "state": "ready"}]}  # fmt: skip
        assert client.get("/ping").status_code == 200


def test_a_judgement_that_is_old_gives_way_to_the_http_servers_own(
    client: httpx.Client, engine: FakeEngine, judged: HealthWriter, listed: ProcessListWriter
) -> None:
    """The Health Server hangs, or is being started again."""
    listed.write([ProcessState("router", "ready"), ProcessState("health", "ended", restarts=1)])
    note = r"the Health Server has not looked for (\d+) s: this is the Http Server's own judgement$"
    judged.write(Health("unhealthy", "router has made no progress", [], time.monotonic() - 4))
    body = client.get("/health").json()
    assert body["status"] == "ok" and re.match(f"health is ended; {note}", body["reason"])
    assert [process["state"] for process in body["processes"]] == ["ready", "ended"]
    beat(engine, "router", 9)
    try:
        response = client.get("/health")
        assert response.status_code == 503
        assert re.match(
            f"router has made no progress for 9 s; health is ended; {note}", response.json()["reason"]
        )
        assert [process["state"] for process in response.json()["processes"]] == ["hanging", "ended"]
    finally:
        (engine.runtime.beats_dir / "router").unlink()


def test_a_model_that_serves_or_has_ceased_to_is_told_before_the_next_judgement(
    client: httpx.Client, engine: FakeEngine, judged: HealthWriter
) -> None:
    judged.write(Health("starting", "backend-0 is loading", [], time.monotonic()))
    assert client.get("/health").status_code == 200
    judged.write(Health("ok", "", [], time.monotonic()))
    engine.ready(ready=0)
    response = client.get("/health")
    assert response.status_code == 503 and response.json()["status"] == "starting"


@pytest.mark.parametrize("process", ["metrics", "health", "supervisor"])
def test_a_process_that_no_request_passes_may_hang(
    client: httpx.Client, engine: FakeEngine, process: str
) -> None:
    beat(engine, process, 9)
    try:
        check_healthy(client)
        assert client.get("/health").json()["reason"].startswith(f"{process} has made no progress for 9 s")
        beat(engine, "router", 8)  # does not hide behind it
        check_healthy(client, "router has made no progress for 8 s; ")
    finally:
        (engine.runtime.beats_dir / process).unlink()
        (engine.runtime.beats_dir / "router").unlink(missing_ok=True)

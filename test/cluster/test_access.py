"""Who may ask the controller for what: one table, in the code and in docs/cluster.md, with a line for every route that there is."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import httpx
import pytest
from cluster.conftest import RunningController, Serving

from lightllm.cluster.access import ACCESS, Access
from lightllm.cluster.paths import GET_PATHS, RESPONSE_PATHS, TOLD_PATHS, WORKER_PATHS
from lightllm.cluster.signing import HEADER, sign
from lightllm.cluster.workers.config import WorkerConfig
from lightllm.cluster.workers.service import WorkerService
from lightllm.httpserver.page_routes import page_paths

PAGE = Path(__file__).resolve().parents[2] / "docs/cluster.md"
SECRET = "a secret of sixteen"
CLIENT, ADMIN = {"authorization": "Bearer client"}, {"authorization": "Bearer admin"}


@pytest.fixture
def secret_file(tmp_path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return str(path)


def routes_of(running: RunningController) -> set[str]:
    """All that the application answers: the web framework's routes, and what never gets there."""
    pending, found = [*running.controller.routes.routes], set()
    for route in pending:
        found |= {route.path} if hasattr(route, "path") else set()
        pending += getattr(getattr(route, "original_router", None), "routes", [])
    return found | WORKER_PATHS | GET_PATHS | RESPONSE_PATHS | TOLD_PATHS


def test_every_route_of_the_controller_is_in_the_table(start):
    pages = page_paths(controller=True) - {"/"}
    running = start(RunningController)
    assert httpx.get(running.url + "/liveness").status_code == 200
    assert routes_of(running) - pages == ACCESS.keys()


def test_the_table_of_the_docs_is_that_of_the_code():
    rows = re.findall(r"^\| (\w+) \|(.*)\|(.*)\|$", PAGE.read_text(), flags=re.MULTILINE)
    told = {
        level: set(re.findall(r"`(/[^`]*)`", routes))
        for level, _, routes in rows
        if level in {each.value for each in Access}
    }
    known = {access.value: {path for path in ACCESS if ACCESS[path] is access} for access in Access}
    assert told == known


def ask(running: RunningController, path: str, headers: dict[str, str]) -> int:
    """The status by the method that the route takes."""
    path = re.sub(r"\{[^}]*\}", "resp_1", path)
    for method in ("GET", "POST", "DELETE"):
        status = httpx.request(method, running.url + path, headers=headers, json={}).status_code
        if status != 405:
            return status
    raise AssertionError(path)


DENIED = (401, 403)
TAKEN: dict[Access, tuple[str, ...]] = {
    Access.OPEN: ("nobody", "client", "admin"),
    Access.CLIENT: ("client", "admin"),
    Access.OPERATOR: ("admin",),
    Access.WORKER: ("admin",),
}


@pytest.mark.parametrize("access", Access)
def test_with_keys_each_route_takes_those_that_the_table_names(start, access):
    running = start(RunningController, api_key=["client"], admin_api_key=["admin"], disable_page=True)
    for path in (path for path in ACCESS if ACCESS[path] is access):
        for who, headers in (("nobody", {}), ("client", CLIENT), ("admin", ADMIN)):
            status = ask(running, path, headers)
            assert (status not in DENIED) == (who in TAKEN[access]), (path, who, status)


@pytest.mark.parametrize("access", [Access.OPERATOR, Access.WORKER])
def test_an_admin_key_alone_closes_what_operators_and_workers_do(start, access):
    running = start(RunningController, admin_api_key=["admin"])
    for path in (path for path in ACCESS if ACCESS[path] is access):
        assert ask(running, path, {}) in DENIED and ask(running, path, ADMIN) not in DENIED, path
    assert ask(running, "/v1/models", {}) == 200


def register(running: RunningController, headers: dict[str, str], secret: str = "") -> int:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    body = json.dumps({"worker_name": "http://127.0.0.1:1", "worker_status": status}).encode()
    if secret:
        headers = headers | {HEADER: sign(secret.encode(), "POST", "/register_worker", body, time.time())}
    return httpx.post(running.url + "/register_worker", content=body, headers=headers).status_code


def test_where_there_is_a_secret_it_alone_lets_workers_in(start, secret_file):
    keys = {"api_key": ["client"], "admin_api_key": ["admin"], "cluster_secret_file": secret_file}
    running = start(RunningController, **keys)
    assert [register(running, headers) for headers in ({}, CLIENT, ADMIN)] == [401] * 3
    assert register(running, {}, "another secret, also long") == 401 and len(running.registry) == 0
    assert register(running, {}, SECRET) == 200
    assert register(start(RunningController, **keys, unsigned_workers=True), {}) == 200


def test_without_keys_and_without_a_secret_loopback_workers_are_believed(start):
    assert register(start(RunningController), {}) == 200
    assert register(start(RunningController, api_key=["client"]), CLIENT) == 200


class RealWorker(Serving):
    """In this process; nothing answers behind it."""

    def __init__(self, controller: str, models: Path, secret: str = "", **options) -> None:
        super().__init__()
        models.write_text(json.dumps({"m": {"model_path": "m", "api_base": "http://127.0.0.1:1"}}))
        config = WorkerConfig(port=0, controller_address=[controller], model_info_file=str(models), **options)
        self.service = WorkerService("huggingface", config, [])
        self._task = asyncio.run_coroutine_threadsafe(self.service.run(secret.encode()), self.loop)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.service.stop)
        self._task.result(20)
        super().end()


@pytest.mark.parametrize("believed_by", ["secret", "key"])
def test_a_real_worker_registers_beats_and_leaves_at_a_controller_with_keys(
    start, secret_file, tmp_path, believed_by
):
    keys = {"api_key": ["client"], "admin_api_key": ["admin"]}
    signed = believed_by == "secret"
    running = start(RunningController, **keys, **({"cluster_secret_file": secret_file} if signed else {}))
    words = {"secret": SECRET} if signed else {"controller_api_key": "admin"}
    worker = RealWorker(running.url, tmp_path / "models.json", **words)
    try:
        running.wait_for(lambda: len(running.registry))
        (known,) = running.registry
        first = known.last_heard
        running.wait_for(lambda: known.last_heard > first)
    finally:
        worker.end()
    assert len(running.registry) == 0


def test_a_worker_that_is_not_believed_says_why(start, tmp_path, caplog):
    running = start(RunningController, api_key=["client"], admin_api_key=["admin"])
    start(RealWorker, running.url, tmp_path / "models.json", controller_api_key="client")
    running.wait_for(lambda: "--controller_api_key" in caplog.text)
    assert "answered 401" in caplog.text and len(running.registry) == 0


def test_a_controller_registers_with_one_that_has_keys(start):
    above = start(RunningController, api_key=["client"], admin_api_key=["admin"])
    below = start(RunningController, controller_address=[above.url], controller_api_key="admin")
    assert register(below, {}) == 200
    above.wait_for(lambda: len(above.registry))

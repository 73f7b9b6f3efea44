"""A controller here and workers on another host: who may register, and what becomes of requests when the link does not work."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from cluster.conftest import MockWorker, RunningController
from support.two_hosts import OtherHost, other_host

from lightllm.cluster import probing
from lightllm.cluster.registry import Patience
from lightllm.cluster.signing import HEADER, sign
from lightllm.cluster.worker import State

SECRET = "a secret of sixteen"
BODY = {"model": "m", "prompt": "hello", "max_tokens": 4}
SERVER = """
import asyncio, sys
from aiohttp import web
async def answer(request):
    if request.method == "POST": await asyncio.sleep(float(request.query.get("seconds", 0)))
    return web.json_response({"data": [{"id": "m"}], "from": "there"})
async def main():
    app = web.Application(); app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app); await runner.setup()
    site = web.TCPSite(runner, sys.argv[1], 0); await site.start()
    print(site._server.sockets[0].getsockname()[1], flush=True); await asyncio.Event().wait()
asyncio.run(main())
"""
POST = """
import json, sys, urllib.error, urllib.request
url, body, headers = sys.argv[1], sys.argv[2].encode(), json.loads(sys.argv[3])
try:
    print(urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
"""


@pytest.fixture(scope="module")
def host() -> Iterator[OtherHost]:
    with other_host() as host:
        yield host


@pytest.fixture(scope="module")
def there(host) -> Iterator[str]:
    """URL of a server on the other host."""
    process = host.start("-c", SERVER, host.there)
    try:
        yield f"http://{host.there}:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def secret_file(tmp_path) -> str:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    return str(path)


@pytest.fixture
def running(start, host, secret_file) -> RunningController:
    return start(RunningController, host=host.here, cluster_secret_file=secret_file)


def registration(url: str, **more) -> str:
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    return json.dumps(
        {"worker_name": url, "worker_status": status, "kind": "openai", "check_heart_beat": False, **more}
    )


def signed(body: str, secret: str = SECRET) -> dict[str, str]:
    return {HEADER: sign(secret.encode(), "POST", "/register_worker", body.encode(), time.time())}


def register_from(host: OtherHost, running, body: str, headers: dict[str, str]) -> str:
    headers = {"content-type": "application/json", **headers}
    return host.ask("-c", POST, running.url + "/register_worker", body, json.dumps(headers))


def test_a_worker_on_the_other_host_registers_with_the_secret_and_serves(running, host, there, secret_file):
    words = ("-m", "lightllm.cluster.workers", "model", "--host", host.there, "--port", "0", "--server_url", there,
             "--controller_address", running.url, "--cluster_secret_file", secret_file)  # fmt: skip
    worker: subprocess.Popen[str] = host.start(*words)
    try:
        running.wait_for(lambda: len(running.registry) == 1 or worker.poll() is not None, 60)
        (known,) = running.registry
        assert known.url.startswith(f"http://{host.there}:") and known.description.api_url == there
        assert httpx.post(running.url + "/v1/completions", json=BODY).json()["from"] == "there"
    finally:
        worker.terminate()
        worker.communicate(timeout=30)
    running.wait_for(lambda: len(running.registry) == 0)


def test_another_secret_registers_nothing(running, host, there):
    body = registration(there)
    answer = register_from(host, running, body, signed(body, "another of sixteen"))
    assert answer.startswith("401") and "another secret" in answer
    assert register_from(host, running, body, {}).startswith("401") and len(running.registry) == 0


def test_a_signature_of_another_registration_is_refused_and_so_is_a_replay(running, host, there):
    body = registration(there)
    headers = signed(body)
    assert register_from(host, running, registration(there + "1"), headers).startswith("401")
    assert register_from(host, running, body, headers).startswith("200")
    httpx.delete(running.url + "/workers", params={"url": there})
    assert "used before" in register_from(host, running, body, headers)
    answer = httpx.post(
        running.url + "/register_worker", content=body, headers=headers
    )  # overheard, from here
    assert answer.status_code == 401 and len(running.registry) == 0


@pytest.mark.parametrize("field", ["worker_name", "server_url"])
def test_a_worker_may_name_its_own_host_and_no_other(running, host, there, field):
    """A worker that knows the secret could else make the controller call whatever that can reach."""
    for foreign in ("http://10.1.2.3:80", "http://example.com", "http://169.254.169.254/latest"):
        named = {"worker_name": foreign} if field == "worker_name" else {"server_url": foreign}
        body = json.dumps(json.loads(registration(there)) | named)
        assert register_from(host, running, body, signed(body)).startswith("403"), foreign
    assert len(running.registry) == 0


@pytest.fixture
def impatient(start, host, secret_file, monkeypatch, there):
    """A controller that loses patience in seconds, with a worker here and one on the other host."""
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(probing, "_STEADY_INTERVAL", 0.5)
    here = start(MockWorker)
    controller = start(RunningController, host=host.here, workers=[here.url, there], connect_timeout=0.5,
                       dispatch_method="round_robin", allowed_workers=[host.there, "127.0.0.1"])  # fmt: skip
    controller.registry.patience = Patience(1.0, 2.0)
    controller.wait_for(lambda: len(controller.registry) == 2)
    return controller, here


def test_a_link_that_is_cut_silently_is_found_and_its_requests_go_elsewhere(impatient, host, there):
    if not host.is_apart:
        pytest.skip("a loopback address cannot be cut off")
    controller, here = impatient
    worker = controller.registry.get(there)
    slow = controller.url + "/v1/completions?seconds=60"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        pending = [pool.submit(httpx.post, slow, json=BODY, timeout=60) for _ in range(4)]
        controller.wait_for(lambda: worker.in_flight and len(here.seen) + worker.in_flight == 4)
        host.cut()
        try:
            begun = time.monotonic()
            answers = [each.result() for each in pending]
            assert {answer.json().get("from") for answer in answers} == {here.url}
            assert worker.state is State.OUT and time.monotonic() - begun < 15
            assert httpx.post(controller.url + "/v1/completions", json=BODY).json()["from"] == here.url
        finally:
            host.mend()
    controller.wait_for(lambda: worker.state is State.READY)
    controller.wait_for(lambda: not any(each.in_flight for each in controller.registry))


class SlowLink(threading.Thread):
    """A port here whose connections come through late, or not at all."""

    def __init__(self, target: str) -> None:
        super().__init__(daemon=True)
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = host, int(port)
        self.delay = 0.0
        self.stalled = False
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self.start()

    def run(self) -> None:
        self._loop.run_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._pump(reader, forth), self._pump(back, writer), return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(self.delay)
            while self.stalled:
                await asyncio.sleep(0.02)
            writer.write(data)
        writer.close()

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.join(10)


@pytest.mark.parametrize("how", ["slow", "stalled"])
def test_a_link_that_is_slow_or_takes_everything_and_gives_nothing_is_found(start, monkeypatch, how):
    monkeypatch.setattr(probing, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(probing, "_STEADY_INTERVAL", 0.5)
    workers = [start(MockWorker) for _ in range(2)]
    link = start(SlowLink, workers[1].url)
    controller = start(RunningController, workers=[workers[0].url, link.url], dispatch_method="round_robin")
    controller.registry.patience = Patience(1.0, 2.0)
    controller.wait_for(lambda: len(controller.registry) == 2)
    known = controller.registry.get(link.url)
    link.delay, link.stalled = (2.0, False) if how == "slow" else (0.0, True)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = [
            *pool.map(
                lambda _: httpx.post(controller.url + "/v1/completions", json=BODY, timeout=60), range(4)
            )
        ]
    assert {answer.status_code for answer in answers} == {200}
    controller.wait_for(lambda: known.state is State.OUT)
    assert httpx.post(controller.url + "/v1/completions", json=BODY).json()["from"] == workers[0].url
    link.delay, link.stalled = 0.0, False
    controller.wait_for(lambda: known.state is State.READY)

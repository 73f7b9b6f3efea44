"""A server that speaks HTTPS and has its keys in a file; both are replaced while it serves."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.metrics import samples
from support.model_folder import make_model_folder
from support.server import LightLLMServer

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.server.prepare import resolve_config

PEM = Path(__file__).parents[1] / "support" / "tls"
TRUST = ssl.create_default_context(cafile=str(PEM / "cert.pem"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    make_model_folder(folder / "tiny")
    for name in ("cert.pem", "key.pem"):
        shutil.copy(PEM / name, folder / name)
    (folder / "keys").write_text("first\nroot admin\n")
    (folder / "keys").chmod(0o600)
    return folder


def options(folder: Path, **changed: str) -> list[str]:
    values = {
        "model_dir": str(folder / "tiny"), "ssl_certfile": str(folder / "cert.pem"),
        "ssl_keyfile": str(folder / "key.pem"), "api_key_file": str(folder / "keys"), "mock_backend": "step_ms=5",
    } | changed  # fmt: skip
    return [part for name, value in values.items() for part in (f"--{name}", value) if value]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LightLLMServer]:
    with LightLLMServer(options(folder)) as server:
        yield server


def status(server: LightLLMServer, key: str, path: str = "/v1/models") -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(server.url + path, headers=headers, verify=TRUST, timeout=30).status_code


def address(server: LightLLMServer) -> tuple[str, int]:
    host, port = server.url.removeprefix("https://").split(":")
    return host, int(port)


def test_answers_and_streams_come_over_tls_to_those_with_a_key(server: LightLLMServer) -> None:
    assert [status(server, key) for key in ("first", "root", "wrong")] == [200, 200, 401]
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}
    with httpx.Client(base_url=server.url, verify=TRUST, headers={"x-api-key": "first"}, timeout=30) as client:  # fmt: skip
        whole = client.post("/generate", json=body).json()
        assert whole["count_output_tokens"] == 30
        lines = client.post("/generate_stream", json=body).text.split("\n\n")
        assert sum(line.startswith("data:") for line in lines) == 30
        assert client.post("/flush_cache").status_code == 403
        assert client.post("/flush_cache", headers={"x-api-key": "root"}).status_code == 200


def test_what_speaks_no_tls_or_nothing_at_all_disturbs_nobody(server: LightLLMServer) -> None:
    with socket.create_connection(address(server), timeout=10) as silent:
        with socket.create_connection(address(server), timeout=10) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in plain.recv(100)
        assert status(server, "first") == 200
        silent.sendall(b"x")


def test_a_client_that_leaves_a_stream_over_tls_frees_its_request(server: LightLLMServer) -> None:
    body = {"inputs": "hello", "parameters": {"max_new_tokens": 900, "ignore_eos": True}}
    headers = {"authorization": "Bearer first"}
    with httpx.stream("POST", server.url + "/generate_stream", json=body, headers=headers, verify=TRUST) as response:  # fmt: skip
        assert json.loads(next(response.iter_lines())[5:])
    end = time.monotonic() + 20
    while True:
        values = samples(httpx.get(server.url + "/metrics", headers=headers, verify=TRUST, timeout=30).text)
        if values["lightllm_batch_current_size"] == 0 and values["lightllm_router_aborted_total"] == 1:
            break
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_http_server_that_is_killed_amid_this_serves_with_what_the_files_say_now(
    server: LightLLMServer, folder: Path
) -> None:
    (folder / "keys").write_text("third\nroot admin\n")
    server.send(signal.SIGHUP)
    server.child("http-0").kill()
    wait_for(lambda: answered(server, "third"))
    assert status(server, "first") == 401


def test_keys_and_certificate_are_read_anew_on_a_signal(server: LightLLMServer, folder: Path) -> None:
    (folder / "keys").write_text("second\nroot admin\n")
    assert status(server, "second") == 401
    server.send(signal.SIGHUP)
    wait_for(lambda: status(server, "second") == 200)
    assert status(server, "first") == 401
    (folder / "keys").write_text("no key at all\n")
    (folder / "key.pem").write_text("no key either\n")
    server.send(signal.SIGHUP)
    server.wait_for("not read anew: --api_key_file .*line 1: not one key")
    server.wait_for("not read anew: --ssl_certfile")
    assert status(server, "second") == 200
    server.child("http-0").kill()  # the one that follows has what was right, too
    wait_for(lambda: answered(server, "second"))
    assert status(server, "first") == 401


def answered(server: LightLLMServer, key: str) -> bool:
    try:
        return status(server, key) == 200
    except httpx.TransportError:
        return False


def wait_for(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ssl_keyfile": str(PEM / "encrypted_key.pem")}, "the key is encrypted"),
        ({"ssl_keyfile": "/no/such/file"}, "No such file or directory"),
        ({"ssl_keyfile": None}, "no certificate with its key"),
        ({"ssl_certfile": None}, "--ssl_keyfile is of no use alone."),
        ({"api_key_file": "/no/such/file"}, "--api_key_file /no/such/file cannot be read"),
    ],
)
def test_wrong_files_end_the_launch(changed: dict[str, str | None], message: str) -> None:
    values = {"ssl_certfile": str(PEM / "cert.pem"), "ssl_keyfile": str(PEM / "key.pem")} | changed
    with pytest.raises(InvalidOption, match=message):
        resolve_config(ServerConfig(mock_backend="", **values))  # type: ignore[arg-type]

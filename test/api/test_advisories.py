"""What other servers were told of in security advisories, each class as a test. `docs/security.md` lists the classes with these
tests and with those that stand elsewhere."""

from __future__ import annotations

import importlib
import pkgutil
import re
import socket
import stat
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest
from support.drawn_images import encoded, halves
from support.process_usage import tree
from support.server import LightLLMServer

import lightllm
from lightllm.errors import InvalidImage
from lightllm.http import key_ring
from lightllm.http.key_ring import KeyRing, digest_of
from lightllm.images.decode import check
from lightllm.images.layouts.registry import LAYOUTS, VisionFolder
from lightllm.images.prompt import encode

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "seed": 5}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "hello", "parameters": {"max_new_tokens": 3, "seed": 5}},
    "/generate_stream": {"inputs": "hello", "parameters": {"max_new_tokens": 3, "seed": 5}},
    "/v1/completions": {"prompt": "hello", "max_tokens": 3, "seed": 5},
    "/v1/chat/completions": CHAT,
    "/tokens": {"text": "hello"},
}


# -- A. Code and data between processes


def test_the_server_listens_on_its_own_address_alone_and_its_sockets_are_private(
    server: LightLLMServer,
) -> None:
    """vLLM CVE-2025-32444, CVE-2025-47277, CVE-2025-30202: sockets of processes, open to the network."""
    host, port = server.url.removeprefix("http://").split(":")
    listening = set()
    for pid in tree(server.process.pid):
        for connection in psutil.Process(pid).net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM:
                listening.add((connection.laddr.ip, connection.laddr.port))
    assert listening == {(host, int(port))}
    (folder,) = server.runtime_folders()
    for path in (folder, folder.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert any(stat.S_ISSOCK(path.stat().st_mode) for path in folder.iterdir())


# -- B. Templates and code of strangers


INTERNAL: dict[str, Any] = {
    "chat_template": "{% for a in range(10 ** 9) %}{% endfor %}", "cache_salt": "\0" * 99, "prompt_embeds": "AAAA",
    "mm_processor_kwargs": {"max_frames": 10**9}, "lora_path": "/etc", "bootstrap_host": "x", "vllm_xargs": {"a": 1},
    "kv_transfer_params": {"do_remote_prefill": True}, "logits_processors": ["os.system"], "tokenize": True,
    "custom_logit_processor": "gASVHw==", "session_params": {"id": "x"},
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_no_route_lets_clients_reach_internals(client: httpx.Client, path: str) -> None:
    """vLLM CVE-2026-115918, CVE-2025-61620, CVE-2026-105756, CVE-2026-105758; SGLang #36855: a check that one route lacked. Here the
    field is refused by its name, or the answer is the one without it."""
    body = BODIES[path]
    without = client.post(path, json=body)
    for field, value in INTERNAL.items():
        for place in (
            body | {field: value},
            body | {"parameters": body.get("parameters", {}) | {field: value}},
        ):
            response = client.post(path, json=place)
            if response.status_code == 400:
                assert field in response.text
            else:
                assert response.status_code == 200 and answer(response) == answer(without), field


def answer(response: httpx.Response) -> str:
    """What does not differ from one answer to the same request to the next."""
    return re.sub(r'"(id|created|request_id|cached_tokens)":\s*("[^"]*"|\d+)', "", response.text)


# -- C. Time that grows faster than the text


def modules() -> list[ModuleType]:
    """Those that read what strangers or models write."""
    rooms = (
        "constraints",
        "http",
        "httpserver",
        "images",
        "parsers",
        "templating",
        "tokenizer",
        "detokenizer",
    )
    found = []
    for room in rooms:
        package = importlib.import_module(f"lightllm.{room}")
        for module in pkgutil.iter_modules(package.__path__, f"lightllm.{room}."):
            if not module.name.endswith("__main__"):
                found.append(importlib.import_module(module.name))
    return found


def test_no_regular_expression_of_ours_takes_longer_than_its_text_is_long() -> None:
    """vLLM CVE-2025-48887, CVE-2025-71379."""
    patterns = {
        (module.__name__, name): value
        for module in modules()
        for name, value in vars(module).items()
        if isinstance(value, re.Pattern) and module.__name__.startswith(lightllm.__name__)
    }
    assert len(patterns) >= 8
    pieces = [
        "a",
        " ",
        "\\",
        '"',
        "\n",
        "(",
        "[a",
        "::=",
        ": ",
        'a" | "',
        "0",
        "{",
        "-.",
        "a b",
        "\\\\",
        "list[",
        "start: ",
        "<|",
        "\t\r\n",
    ]
    for where, pattern in patterns.items():
        begin = time.thread_time()
        for piece in pieces:
            for text in (piece * (20_000 // len(piece)), 'start: "' + piece * (20_000 // len(piece)) + "!"):
                subject: Any = text.encode() if isinstance(pattern.pattern, bytes) else text
                pattern.search(subject)
                pattern.fullmatch(subject)
        assert time.thread_time() - begin < 10, where  # quadratic ones take minutes


def test_markers_of_images_without_end_cost_no_more_than_their_text() -> None:
    """vLLM CVE-2025-46560."""
    layout = LAYOUTS["llava"](VisionFolder(Path(), {}, {}, {"<image>": 10}.get))
    begin = time.thread_time()
    ids = encode("<image>" * 200_000, layout, lambda text, special: [10] * text.count("<image>"), False)
    assert len(ids) == 200_000 and time.thread_time() - begin < 10


# -- D. Parameters that end engines


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/generate"])
@pytest.mark.parametrize("least", [1, 17, 5000, 2**31 - 1])
def test_a_least_length_without_a_longest_is_an_answer_or_an_error(
    client: httpx.Client, path: str, least: int
) -> None:
    """vLLM CVE-2026-114051: a thread of the engine ended, and its health stayed green."""
    if path == "/generate":
        body: dict[str, Any] = {"inputs": "hello", "parameters": {"min_new_tokens": least}}
    else:
        body = {k: v for k, v in BODIES[path].items() if k != "max_tokens"} | {
            "min_tokens": least,
            "stop": "a",
        }
    assert client.post(
        path, json=body | {"max_tokens": None} if path != "/generate" else body
    ).status_code in (200, 400)
    assert client.post("/generate", json=BODIES["/generate"]).status_code == 200


# -- E. Images


@pytest.mark.parametrize(
    "data",
    [encoded(halves())[:-30], b"GIF89a" + bytes(40), b"\x89PNG\r\n\x1a\n" + bytes(30), b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff", b"II*\0" + bytes(20), b"BM" + bytes(60)],
    ids=["cut", "gif", "png", "webp", "jpeg", "tiff", "bmp"],
)  # fmt: skip
def test_an_error_about_an_image_tells_nothing_of_the_process(data: bytes) -> None:
    """vLLM CVE-2026-22778, CVE-2026-54236: the address of an object in the text of an exception."""
    with pytest.raises(InvalidImage) as caught:
        check(data, 1000, "image")
    assert not re.search(r"0x|object|BytesIO|\.py|<", caught.value.message)


# -- F. Keys


def test_a_key_is_compared_with_all_that_there_are_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM CVE-2025-59425."""
    compared: list[bytes] = []
    original = key_ring.hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return original(a, b)

    monkeypatch.setattr(key_ring.hmac, "compare_digest", compare)
    ring = KeyRing(["first", "second", "third"], ["admin"])
    assert ring.opens(digest_of(b"first")) and len(compared) == 3
    assert not ring.opens(digest_of(b"fourth")) and len(compared) == 6
    assert all(len(digest) == 32 for digest in compared)


@pytest.mark.slow  # of titles: test/server/test_supervisor_lifecycle.py
def test_keys_are_neither_on_the_command_line_nor_in_the_log(tmp_path: Path) -> None:
    """Other users of the machine read `/proc/PID/cmdline`; the environment and the runtime folder are the user's own."""
    options = [
        "--mock_backend",
        "--api_key",
        "sk-a-secret",
        "--admin_api_key",
        "sk-more",
        "--log_level",
        "debug",
    ]
    with LightLLMServer(options) as started:
        wrong = {"authorization": "Bearer sk-wrong", "x-api-key": "sk-a-secret2"}
        assert httpx.get(started.url + "/v1/models", headers=wrong, timeout=30).status_code == 401
        right = {"authorization": "Bearer sk-a-secret"}
        assert httpx.get(started.url + "/v1/models", headers=right, timeout=30).status_code == 200
        lines = [" ".join(psutil.Process(pid).cmdline()) for pid in tree(started.process.pid)]
        assert not [line for line in lines if "sk-" in line]
        assert "sk-" not in started.log

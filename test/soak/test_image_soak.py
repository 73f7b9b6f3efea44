"""Hundreds of requests with images through a whole server, whose cache holds a third of them, and of which processes are killed."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.llava import MARKER, base64_text, make_llava, picture
from support.server import LightLLMServer

from lightllm.ipc.image_cache import ImageCache
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.images import CacheStats

pytestmark = pytest.mark.slow

REQUESTS, IMAGES, CAPACITY, CAPACITY_BYTES = 500, 60, 20, 64 << 20
CLIENTS = 8
SECONDS = 120
BACK_SECONDS = 10.0
"""Within which requests are answered that waited for a process that was killed, counted from its return."""
LEAKED_BYTES = 24 << 20
"""By which a process may be larger after all requests than after the first half of them."""


class Served:
    def __init__(self, server: LightLLMServer) -> None:
        self.server = server
        self.runtime = RuntimeDir(server.runtime_folders()[0])
        self.folder = self.runtime.images_dir.resolve()
        self.cache = ImageCache(self.runtime)

    def generate(self, text: str, *files: bytes) -> httpx.Response:
        images = [{"type": "base64", "data": base64_text(file)} for file in files]
        parameters = {"max_new_tokens": 8, "ignore_eos": True, "return_details": True}
        body = {"inputs": text, "parameters": parameters, "multimodal_params": {"images": images}}
        return httpx.post(self.server.url + "/generate", json=body, timeout=SECONDS)

    def stats(self) -> CacheStats:
        return self.cache.stats().result(SECONDS)

    def files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.suffix in (".data", ".embedding")]

    def sizes(self) -> dict[str, int]:
        """Resident bytes of every process, by its title."""
        children = [child for child in self.server.note_children() if child.is_running()]
        return {" ".join(child.cmdline()).strip(): child.memory_info().rss for child in children}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    llava = make_llava(tmp_path / "model")
    options = [
        "--model_dir", str(llava.path), "--device", "cpu", "--data_type", "fp32", "--cache_capacity", str(CAPACITY),
        "--cache_capacity_bytes", str(CAPACITY_BYTES), "--max_total_token_num", "4000", "--max_req_total_len", "256",
        "--max_image_mb", "8", "--httpserver_workers", "2", "--visual_dp", "2",
    ]  # fmt: skip
    with LightLLMServer(options) as server:
        served = Served(server)
        yield served
        served.cache.close()
    assert not served.folder.exists()
    assert server.process.returncode == 0


class Texts(threading.Thread):
    """Requests without images, one after the other, as long as the others run."""

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        self._served = served
        self.over = threading.Event()
        self.answers: list[Any] = []
        self.longest = 0.0
        """Seconds that a request took."""

    def run(self) -> None:
        while not self.over.is_set():
            started = time.monotonic()
            response = self._served.generate("The quick brown fox jumps")
            self.answers.append(
                [t["id"] for t in response.json()["tokens"]] if response.is_success else response
            )
            self.longest = max(self.longest, time.monotonic() - started)


def test_500_requests_with_60_images_and_a_cache_of_20_while_processes_are_killed(served: Served) -> None:
    pictures = [picture(1000 + number, 20 + number, 90 - number) for number in range(IMAGES)]
    answers: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    done: list[float] = []
    sizes: list[dict[str, int]] = []
    most_files = most_bytes = 0

    def ask(number: int) -> None:
        nonlocal most_files, most_bytes
        chosen = (number * 7 % IMAGES, number * number % IMAGES)[: 1 + number % 2]
        response = served.generate(
            f"See {MARKER * len(chosen)} there", *(pictures[index] for index in chosen)
        )
        assert response.status_code == 200, response.text
        answers[chosen].add(tuple(token["id"] for token in response.json()["tokens"]))
        files = [path.stat().st_size for path in served.files() if path.exists()]
        most_files, most_bytes = max(most_files, len(files)), max(most_bytes, sum(files))
        done.append(time.monotonic())

    def kill(name: str) -> None:
        starts = served.server.log.count(f"{name} ready")
        served.server.child(name).kill()
        wait_until(lambda: served.server.log.count(f"{name} ready") > starts)

    def kills() -> None:
        for count, name in ((100, "cache"), (200, "visual-0"), (300, "visual-1"), (350, "cache")):
            wait_until(lambda count=count: len(done) >= count)
            kill(name)
            back, before = time.monotonic(), len(done)
            wait_until(lambda before=before: len(done) >= min(before + CLIENTS, REQUESTS), BACK_SECONDS)
            print(f"{name}: {CLIENTS} answers within {time.monotonic() - back:.1f} s of its return")

    texts = Texts(served)
    texts.start()
    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        killing = pool.submit(kills)
        for half in (range(REQUESTS // 2), range(REQUESTS // 2, REQUESTS)):
            list(pool.map(ask, half))
            sizes.append(served.sizes())
        killing.result()
    texts.over.set()
    texts.join(SECONDS)

    assert len(done) == REQUESTS and all(len(different) == 1 for different in answers.values())
    assert len(texts.answers) > 20 and all(answer == texts.answers[0] for answer in texts.answers)
    print(f"{len(texts.answers)} texts beside them, the longest {texts.longest:.2f} s")
    assert most_files <= 2 * CAPACITY and most_bytes <= CAPACITY_BYTES
    wait_until(lambda: served.stats().references == 0)
    stats = served.stats()
    assert stats.items <= CAPACITY and len(served.files()) == stats.items
    assert sum(path.stat().st_size for path in served.files()) == stats.size
    maps = served.server.child("backend-0").memory_maps(grouped=False)
    assert sum(".embedding" in found.path for found in maps) <= CAPACITY
    for name in sizes[0].keys() & sizes[1].keys():
        print(f"{name}: {sizes[0][name] >> 20} MiB, then {sizes[1][name] >> 20} MiB")
        assert sizes[1][name] - sizes[0][name] < LEAKED_BYTES


def wait_until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

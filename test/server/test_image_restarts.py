"""Streams of prompts with images go on with the same tokens when a process is killed under them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image
from support.vision_models import random_images
from support.vision_server import SECONDS, VisionServer, vision_server

pytestmark = pytest.mark.slow
COUNT = 300
IMAGES = random_images(4)
PROMPTS = [
    ("What is the quick {image} here, and {image}?", [0, 1]),
    ("{image}\nThe lazy dog", [2]),
    ("Hello {image}{image} what?", [3, 0]),
    ("The answer is", []),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VisionServer]:
    path = tmp_path_factory.mktemp("qwen") / "model"
    with vision_server(path, "qwen2.5-vl, published", "--check_rounds") as served:
        yield served


class Stream:
    """Of /generate_stream; `tokens` grows as they come."""

    def __init__(self, served: VisionServer, text: str, images: Sequence[Image.Image]) -> None:
        self._served = served
        self._body = served.body(text, images, max_new_tokens=COUNT)
        self.tokens: list[int] = []
        self.begun = threading.Event()

    def run(self) -> list[int]:
        with httpx.stream(
            "POST", self._served.url + "/generate_stream", json=self._body, timeout=SECONDS
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    self._take(json.loads(line[5:]))
        return self.tokens

    def _take(self, event: dict) -> None:
        assert "token" in event, event
        if event["token"]["count_output_tokens"] > len(self.tokens):
            self.tokens.append(event["token"]["id"])
        if len(self.tokens) >= 3:
            self.begun.set()


def streams(served: VisionServer) -> list[Stream]:
    return [Stream(served, text, [IMAGES[n] for n in numbers]) for text, numbers in PROMPTS]


@pytest.mark.parametrize("name", ["router", "backend-0", "detokenizer"])
def test_streams_go_on_with_the_same_tokens(served: VisionServer, name: str) -> None:
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        expected = list(pool.map(Stream.run, streams(served)))
        assert [len(tokens) for tokens in expected] == [COUNT] * len(PROMPTS)
        assert expected[0][:24] == served.reference.greedy(
            served.prompt(PROMPTS[0][0], [IMAGES[0], IMAGES[1]]), 24
        )
        encodes = served.counter("lightllm_image_encodes_total")
        disturbed = streams(served)
        running = [pool.submit(stream.run) for stream in disturbed]
        assert all(stream.begun.wait(SECONDS) for stream in disturbed)
        served.server.child(name).kill()
        counts = [len(stream.tokens) for stream in disturbed]
        assert min(counts) < COUNT, "all was over before"
        killed = time.monotonic()
        assert [future.result() for future in running] == expected
        assert time.monotonic() - killed < SECONDS
    assert served.counter("lightllm_image_encodes_total") == encodes

"""Streams that are read while processes of the server are killed: what each client was told, and how long it waited."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import psutil

from support.server import LightLLMServer

SECONDS = 120.0


class WatchedStream(threading.Thread):
    """One streamed request. `told`: the fields of its events that do not depend on how tokens were grouped."""

    def __init__(self, url: str, path: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.told: list[Any] = []
        self.logprobs: list[float] = []
        self.error = ""
        """Of the connection, or an error event."""
        self.longest_pause = 0.0
        """Seconds between two events."""
        self.local_port = 0
        """Of its connection."""
        self._url, self._path, self._body = url, path, body
        self.start()

    def run(self) -> None:
        try:
            with (
                httpx.Client(timeout=SECONDS) as client,
                client.stream("POST", self._url + self._path, json=self._body) as response,
            ):
                self.local_port = response.extensions["network_stream"].get_extra_info("client_addr")[1]
                if response.status_code != 200:
                    self.error = f"{response.status_code}: {response.read().decode()}"
                    return
                last = time.monotonic()
                for line in response.iter_lines():
                    if line.startswith("data:") and "[DONE]" not in line:
                        now = time.monotonic()
                        self.longest_pause, last = max(self.longest_pause, now - last), now
                        self._take(json.loads(line[5:]))
        except httpx.HTTPError as error:
            self.error = repr(error)

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"])
        elif "token" in event:
            token = event["token"]
            self.told.append((token["id"], token["text"]))
            self.logprobs.append(token["logprob"])
            if event["finished"]:
                self.told.append(event["finish_reason"])
        else:
            for choice in event["choices"]:
                self.told += [(choice["index"], piece) for piece in choice.get("text") or ""]
                if choice.get("finish_reason"):
                    self.told.append((choice["index"], choice["finish_reason"]))

    @property
    def answer(self) -> list[Any]:
        """Choices come interleaved: in their order they are comparable."""
        return sorted(self.told, key=lambda part: part[0] if self._path.startswith("/v1") else 0)

    def differs(self, other: WatchedStream) -> str:
        """How two answers to the same request differ; "": not at all. Log-probabilities may by what a batch's size does to the
        last bits of fp32."""
        if self.error or other.error:
            return f"{self.error} | {other.error}"
        for place, (mine, theirs) in enumerate(itertools.zip_longest(self.answer, other.answer)):
            if mine != theirs:
                return f"part {place}: {mine} | {theirs}"
        gaps = [abs(a - b) for a, b in zip(self.logprobs, other.logprobs, strict=True)]
        return f"log-probabilities by {max(gaps)}" if gaps and max(gaps) > 1e-3 else ""


def start_streams(url: str, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[WatchedStream]:
    return [WatchedStream(url, path, body) for path, body in requests]


def tokens_of(streams: Sequence[WatchedStream]) -> int:
    return sum(len(stream.told) for stream in streams)


def finish(streams: Sequence[WatchedStream]) -> None:
    for stream in streams:
        stream.join(SECONDS)
        assert not stream.is_alive(), "a stream has no end"


def ports_of(process: psutil.Process) -> set[int]:
    """Ports of the clients whose connections a process has."""
    return {c.raddr.port for c in process.net_connections("tcp") if c.status == "ESTABLISHED" and c.raddr}


def wait_until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def metric(server: LightLLMServer, name: str) -> float:
    found = re.search(rf"^{name} (\S+)", httpx.get(server.url + "/metrics", timeout=30).text, re.MULTILINE)
    assert found is not None, name
    return float(found[1])

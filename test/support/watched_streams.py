"""Streams that are read while processes of the server are killed: what each client was told, and how long it waited."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import psutil

from support.metrics import samples
from support.server import LightLLMServer

SECONDS = 120.0
PAUSE_SECONDS = 0.2


class WatchedStream(threading.Thread):
    """One streamed request. `told`: the fields of its events that do not depend on how tokens were grouped."""

    def __init__(
        self, url: str, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(daemon=True)
        self.told: list[Any] = []
        self.ended = 0.0
        """`time.monotonic()`; 0.0: not yet."""
        self.error = ""
        """Of the connection, or an error event."""
        self.longest_pause = 0.0
        """Seconds between two events."""
        self.pauses: list[tuple[float, float]] = []
        """Begin and end, `time.monotonic()`, of those longer than `PAUSE_SECONDS`."""
        self.local_port = 0
        """Of its connection."""
        self._url, self._path, self._body, self._headers = url, path, body, headers
        self._logprobs: dict[int, list[float]] = {}
        self._socket: socket.socket | None = None
        self.start()

    def leave(self) -> None:
        """Ends the connection of a stream that has begun."""
        assert self._socket is not None
        self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            self._read()
        except httpx.HTTPError as error:
            self.error = repr(error)
        self.ended = time.monotonic()

    def _read(self) -> None:
        with (
            httpx.Client(timeout=SECONDS) as client,
            client.stream("POST", self._url + self._path, json=self._body, headers=self._headers) as response,
        ):
            network = response.extensions["network_stream"]
            self.local_port = network.get_extra_info("client_addr")[1]
            self._socket = network.get_extra_info("socket")
            if response.status_code != 200:
                self.error = f"{response.status_code}: {response.read().decode()}"
                return
            last = time.monotonic()
            for line in response.iter_lines():
                if line.startswith("data:") and "[DONE]" not in line:
                    now = time.monotonic()
                    self.longest_pause = max(self.longest_pause, now - last)
                    if now - last > PAUSE_SECONDS:
                        self.pauses.append((last, now))
                    last = now
                    self._take(json.loads(line[5:]))

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.error = str(event["error"])
        elif "token" in event:
            token = event["token"]
            self.told.append((token["id"], token["text"]))
            self._keep_logprobs(0, [token["logprob"]])
            if event["finished"]:
                self.told.append(event["finish_reason"])
        else:
            for choice in event["choices"]:
                self.told += [(choice["index"], piece) for piece in choice.get("text") or ""]
                self._keep_logprobs(
                    choice["index"], (choice.get("logprobs") or {}).get("token_logprobs") or []
                )
                if choice.get("finish_reason"):
                    self.told.append((choice["index"], choice["finish_reason"]))

    def _keep_logprobs(self, index: int, values: list[float | None]) -> None:
        self._logprobs.setdefault(index, []).extend(value for value in values if value is not None)

    @property
    def logprobs(self) -> list[float]:
        """Those of the first choice, then those of the second, and so on."""
        return [value for _, values in sorted(self._logprobs.items()) for value in values]

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
        if len(self.logprobs) != len(other.logprobs):
            return f"{len(self.logprobs)} log-probabilities | {len(other.logprobs)}"
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


def kill(process: psutil.Process, lost: set[int]) -> None:
    """Kills a process at once. Before that, `lost` gets the ports of the clients that lose their connections to it: they hear of it
    sooner than who kills."""
    process.suspend()  # it accepts no other connection
    lost |= ports_of(process)
    process.kill()


def wait_until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def metric(server: LightLLMServer, name: str) -> float:
    return samples(httpx.get(server.url + "/metrics", timeout=30).text)[name]

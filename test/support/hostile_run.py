"""Sends many hostile cases to a server while steady streams are read, and says what was not right: in the answers, in the tokens
of the streams, in their pauses."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from support.hostile_bodies import Dice
from support.hostile_wire import Case, case, parse_answers, problem_of

SECONDS = 60.0
"""After which an answer is missing."""
_LEAVES_SECONDS = 0.5
"""For which a client that leaves early waits for more."""
_STEADY: dict[str, Any] = {
    "inputs": list(range(40, 52)), "parameters": {"max_new_tokens": 150, "ignore_eos": True, "do_sample": False, "seed": 7},
}  # fmt: skip


@dataclasses.dataclass
class Report:
    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)
    streams: int = 0
    """Steady streams that were read to their end."""
    pauses: list[float] = dataclasses.field(default_factory=list)
    """The longest seconds between two tokens of each steady stream."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds that the answers to a case took, and the case."""

    def __str__(self) -> str:
        return (
            f"{sum(self.kinds.values())} cases {dict(self.kinds)}, answers {dict(sorted(self.statuses.items()))}, "
            f"{self.streams} steady streams, longest pause {max(self.pauses):.2f} s, median of longest pauses "
            f"{statistics.median(self.pauses):.3f} s, slowest case {self.slowest[0]:.1f} s ({self.slowest[1]}), "
            f"{len(self.problems)} problems"
        )


def run(url: str, cases: int, seed: int, at_once: int = 8, images: float = Dice.images) -> Report:
    """images: as `Dice` has it."""
    report, stop, lock = Report(), threading.Event(), threading.Lock()
    rng = Dice(seed)
    rng.images = images
    host, port = url.removeprefix("http://").split(":")
    expected, _ = _steady_tokens(url)

    def read_streams() -> None:
        while not report.streams or not stop.is_set():
            tokens, pause = _steady_tokens(url)
            with lock:
                report.streams += 1
                report.pauses.append(pause)
                if tokens != expected:
                    report.problems.append(f"the steady stream: {len(tokens)} tokens, {tokens[-5:]}")

    def send(one: Case) -> None:
        begin = time.monotonic()
        data, problem = converse((host, int(port)), one)
        seconds = time.monotonic() - begin
        answers = []
        if not problem and one.leaves_after is None:
            try:
                answers = parse_answers(data)
                problem = problem_of(one, answers)
            except ValueError as error:
                problem = str(error)
        with lock:
            report.kinds[one.kind] += 1
            report.statuses.update(answer.status for answer in answers)
            report.slowest = max(report.slowest, (seconds, f"{one.kind} {one.parts[0][:200]!r}"))
            if problem:
                report.problems.append(f"{problem}: {one.kind} {b''.join(one.parts)[:1500]!r} {data[:500]!r}")

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(at_once) as senders:
        streams = reader.submit(read_streams)
        try:
            for _ in senders.map(send, (case(rng) for _ in range(cases))):
                pass
        finally:
            stop.set()
        streams.result()
    return report


def converse(address: tuple[str, int], one: Case) -> tuple[bytes, str]:
    """What came, and what was wrong with how it came."""
    received = b""
    with socket.create_connection(address, timeout=SECONDS) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it may be refused before it has sent all
            for part in one.parts:
                raw.sendall(part)
                if one.pause:
                    time.sleep(one.pause)
            if one.leaves_after is None:
                raw.shutdown(socket.SHUT_WR)
            else:
                raw.settimeout(_LEAVES_SECONDS)
        try:
            while one.leaves_after is None or len(received) < one.leaves_after:
                data = raw.recv(1 << 16)
                if not data:
                    break
                received += data
        except TimeoutError:
            return received, "" if one.leaves_after is not None else f"nothing came for {SECONDS:g} s"
        except ConnectionResetError:
            return received, "" if one.leaves_after is not None else "the connection was broken"
    return received, ""


def _steady_tokens(url: str) -> tuple[list[int], float]:
    """Of one stream: its token ids, and the longest pause between two of them in seconds."""
    tokens, pause = [], 0.0
    with httpx.stream("POST", url + "/generate_stream", json=_STEADY, timeout=SECONDS) as response:
        assert response.status_code == 200, response.read()
        last = time.monotonic()
        for line in response.iter_lines():
            if line.startswith("data:"):
                now = time.monotonic()
                pause, last = max(pause, now - last), now
                tokens.append(json.loads(line[5:])["token"]["id"])
    return tokens, pause

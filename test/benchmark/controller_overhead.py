"""What a controller adds to a request: `python test/benchmark/controller_overhead.py`.

Mock workers answer at once, or stream tokens at a given rate; the same load goes to one of them directly and through a controller,
in one run. Printed: p50 and p99 of the time to the first event, what the controller adds, and the CPU time of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httptools
import numpy as np
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightllm.bench.http_stream import StreamFailed, Target, post_events
from lightllm.cluster.config import ControllerConfig
from lightllm.cluster.service import Controller
from lightllm.server.listener import open_listener, url_of

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_EVENT = b'data: {"id":"cmpl-0","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":" word"}]}\n\n'
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class MockWorker(asyncio.Protocol):
    """Answers each POST with `max_tokens` events, `gap` seconds apart, and each GET with what it serves."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._parser.get_method() == b"GET":
            listing = json.dumps({"data": [{"id": "m"}]}).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(listing), listing)
            )
            return
        asked = json.loads(body)
        self._transport.write(_HEAD + _CHUNK)
        self._go_on(asked["max_tokens"] - 1, asked.get("gap", 0.0))

    def _go_on(self, left: int, gap: float) -> None:
        if left <= 0:
            self._transport.write(_END)
            return
        self._transport.write(_CHUNK)
        asyncio.get_running_loop().call_later(gap, self._go_on, left - 1, gap)


def serve_mock(pipe) -> None:  # type: ignore[no-untyped-def]
    async def serve() -> None:
        listener = open_listener("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(MockWorker, sock=listener)
        pipe.send(url_of(listener))
        await server.serve_forever()

    uvloop.run(serve())


def serve_controller(pipe, workers: list[str], method: str) -> None:  # type: ignore[no-untyped-def]
    controller = Controller(ControllerConfig(port=0, workers=workers, dispatch_method=method))
    pipe.send(url_of(controller.listener))
    uvloop.run(controller.run())


@contextlib.contextmanager
def process(target, *args) -> Iterator[tuple[str, psutil.Process]]:  # type: ignore[no-untyped-def]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=target, args=(theirs, *args), daemon=True)
    child.start()
    try:
        yield ours.recv(), psutil.Process(child.pid)
    finally:
        child.terminate()
        child.join()


async def load(
    url: str, rate: float, seconds: float, tokens: int, gap: float, prompt: str
) -> dict[str, float]:
    """Open-loop Poisson arrivals; times from the moment at which a request should have been sent."""
    target = Target.from_url(url)
    firsts: list[float] = []
    failed = events = 0

    async def one(number: int, due: float) -> None:
        nonlocal failed, events
        seen = 0

        def on_event(data: bytes, moment: float) -> None:
            nonlocal seen
            if not seen:
                firsts.append(moment - due)
            seen += 1

        body = {
            "model": "m",
            "prompt": f"{number} {prompt}",
            "max_tokens": tokens,
            "gap": gap,
            "stream": True,
        }
        try:
            await post_events(target, "/v1/completions", json.dumps(body).encode(), on_event, 60.0)
        except StreamFailed:
            failed += 1
        events += seen

    draw = random.Random(0)
    tasks = []
    begun = due = time.perf_counter()
    number = 0
    while due < begun + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(number, due)))
        due += draw.expovariate(rate)
        number += 1
    await asyncio.gather(*tasks)
    spent = time.perf_counter() - begun
    p50, p99 = np.quantile(np.array(firsts), [0.5, 0.99]) * 1e3
    return {
        "requests_per_s": number / spent,
        "p50_ms": p50,
        "p99_ms": p99,
        "events_per_s": events / spent,
        "failed": failed,
    }


def measure(
    urls: dict[str, str], processes: dict[str, psutil.Process], arguments: argparse.Namespace, **shape: float
) -> None:
    for name, url in urls.items():
        before = {who: sum(each.cpu_times()[:2]) for who, each in processes.items()}
        figures = uvloop.run(
            load(url, prompt="x" * arguments.prompt_bytes, seconds=arguments.seconds, **shape)
        )  # type: ignore[arg-type]
        cpu = {who: sum(each.cpu_times()[:2]) - before[who] for who, each in processes.items()}
        shown = " ".join(f"{key}={value:.2f}" for key, value in figures.items())
        share = " ".join(f"{who}={seconds / arguments.seconds:.2f}" for who, seconds in cpu.items())
        print(f"  {name:11} {shown}   cores: {share}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests a second")
    parser.add_argument("--streams_rate", type=float, default=200.0, help="streams of 100 tokens a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--prompt_bytes", type=int, default=2000)
    parser.add_argument("--dispatch_method", default="prefix_aware")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        mocks = [stack.enter_context(process(serve_mock)) for _ in range(arguments.workers)]
        urls = [url for url, _ in mocks]
        url, controller = stack.enter_context(process(serve_controller, urls, arguments.dispatch_method))
        while json.load(urllib.request.urlopen(url + "/workers"))["workers"].__len__() < arguments.workers:
            time.sleep(0.05)
        processes = {"controller": controller, "worker 0": mocks[0][1]}
        ways = {"direct": urls[0], "controller": url}
        print(f"{arguments.rate:.0f} requests/s of one event")
        measure(ways, processes, arguments, rate=arguments.rate, tokens=1, gap=0.0)
        print(f"{arguments.streams_rate:.0f} streams/s of 100 events, 10 ms apart")
        measure(ways, processes, arguments, rate=arguments.streams_rate, tokens=100, gap=0.01)


if __name__ == "__main__":
    main()

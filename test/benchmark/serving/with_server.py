"""`make bench`: starts a server of its own, measures it with `lightllm bench`, and stops it.

    python test/benchmark/serving/with_server.py [--server "OPTIONS"] [options of lightllm bench]

Without options: the demo model, 200 requests of 64 + 64 tokens, 32 at once.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightllm.bench.command import main as measure

DEFAULT_LOAD = ["--num-prompts", "200", "--input-len", "64", "--output-len", "64", "--max-concurrency", "32"]
START_SECONDS = 1800.0
STOP_SECONDS = 60.0


def main(argv: Sequence[str]) -> int:
    arguments = list(argv)
    options = ""
    if arguments[:1] == ["--server"]:
        if len(arguments) < 2:
            print(
                'with_server: --server needs its options as one word: --server "--model_dir DIR"',
                file=sys.stderr,
            )
            return 2
        options = arguments[1]
        arguments = arguments[2:]
    try:
        with running_server(shlex.split(options)) as port:
            return measure(["--port", str(port), *(arguments or DEFAULT_LOAD)])
    except RuntimeError as error:
        print(f"with_server: {error}", file=sys.stderr)
        return 1


@contextlib.contextmanager
def running_server(options: Sequence[str]) -> Iterator[int]:
    """A ready server on a free port, which it yields; raises RuntimeError if it does not start."""
    port = free_port()
    command = [sys.executable, "-m", "lightllm.server.api_server", "--port", str(port), *options]
    print(shlex.join(command), flush=True)
    server = subprocess.Popen(command)
    try:
        wait_ready(server, port)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode} before it was ready")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readiness", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the server was not ready within {START_SECONDS:g} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Records the answers to some hundred varied requests, byte for byte, and compares two recordings.

    python tools/record_answers.py FOLDER           starts two servers of this tree and writes one file for each request
    python tools/record_answers.py --compare A B    says which requests have other answers, and where they part

What differs from run to run (ids, times, ports, values of metrics) is replaced; nothing else is. Sampling is greedy or
seeded, the prefix cache is emptied before each request, the demo model computes in fp32. A change that should not be seen by any
client is recorded before and after.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from answers.catalogue import SERVERS, Server
from answers.exchange import Case, exchange, recorded

ROOT = Path(__file__).resolve().parent.parent
ATTEMPTS = 15
"""Of a stream, whose events depend on how close together its tokens come, until the one with the most events has come twice."""
_READY = re.compile(r"ready: http://[^\s:]+:(\d+)")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="where the answers are written")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two folders")
    options = parser.parse_args(argv)
    if options.compare:
        return compare(*options.compare)
    if options.folder is None:
        parser.error("give a folder, or --compare A B")
    record(options.folder)
    return 0


def record(folder: Path) -> None:
    """Writes `folder/SERVER/NAME.txt` for every case of the catalogue."""
    for server in SERVERS:
        (folder / server.name).mkdir(parents=True, exist_ok=True)
        with running(server) as port:
            for case in server.cases:
                answer = best_recording(port, case, server.flush)
                (folder / server.name / f"{case.name}.txt").write_bytes(answer)
        print(f"{server.name}: {len(server.cases)} answers in {folder / server.name}")


def best_recording(port: int, case: Case, flush: bytes) -> bytes:
    seen: collections.Counter[bytes] = collections.Counter()
    best = b""
    for _ in range(ATTEMPTS if case.streamed else 1):
        exchange(port, Case("flush", flush))
        answer = recorded(exchange(port, case), case)
        seen[answer] += 1
        best = max(seen, key=lambda answer: answer.count(b"data:"))
        if seen[best] == 2:
            break
    return best


def compare(first: Path, second: Path) -> int:
    """Prints every difference; 1 if there is any."""
    names = sorted({str(path.relative_to(base)) for base in (first, second) for path in base.rglob("*.txt")})
    differences = 0
    for name in names:
        texts = [path.read_bytes() if path.exists() else None for path in (first / name, second / name)]
        if texts[0] == texts[1]:
            continue
        differences += 1
        print(f"{name}:")
        for base, text, other in zip((first, second), texts, reversed(texts), strict=True):
            print(f"  {base}: {_first_difference(text, other)}")
    print(f"{len(names)} answers, {differences} differ")
    return 1 if differences or not names else 0


def _first_difference(text: bytes | None, other: bytes | None) -> str:
    if text is None:
        return "not recorded"
    lines, others = text.split(b"\n"), (other or b"").split(b"\n")
    for number, line in enumerate(lines):
        if number >= len(others) or line != others[number]:
            return f"line {number + 1}: {line.decode(errors='replace')[:400]}"
    return "ends earlier"


@contextmanager
def running(server: Server) -> Iterator[int]:
    """The port of a server of this tree, which runs until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="lightllm-answers-") as base:
        options = [*server.options]
        if server.chat_template:
            template = Path(base) / "template.jinja"
            template.write_text(server.chat_template, encoding="utf-8")
            options += ["--chat_template", str(template)]
        process = subprocess.Popen(
            [sys.executable, "-m", "lightllm.server.api_server", "--port", "0", *options],
            env=os.environ | {"LIGHTLLM_RUNTIME_BASE": base, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield _wait_ready(process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _wait_ready(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    log = []
    for line in process.stdout:
        log.append(line)
        ready = _READY.search(line)
        if ready:
            threading.Thread(target=_drop, args=(process,), daemon=True).start()
            return int(ready[1])
    raise SystemExit(f"the server ended:\n{''.join(log)}")


def _drop(process: subprocess.Popen[str]) -> None:
    """Reads the log on, so that the server can write it."""
    assert process.stdout is not None
    for _ in process.stdout:
        pass


if __name__ == "__main__":
    sys.exit(main())

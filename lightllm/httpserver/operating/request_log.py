"""The request log (`--request_log`): one JSON object a line for each generation request that has ended.

A thread makes the lines and writes them; what waits for it is bounded, and what does not fit is dropped and counted
(`lightllm_request_log_lost`). So neither a full disk nor a reader that stops reading holds up a request. Prompts and answers
are in it with `--request_log_prompts` alone.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from lightllm.errors import StartupError
from lightllm.http.metric_store import MetricStore
from lightllm.httpserver.ended import Ended
from lightllm.protocol.metrics import REQUEST_LOG_LOST

MAX_WAITING = 4096
"""Requests."""
MAX_WAITING_TOKENS = 4 << 20
"""Of their prompts and answers, which they hold until they are written."""
_CLOSE_SECONDS = 2.0
_PARAMETERS = ("n", "max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "seed", "priority")
"""Numbers alone: stop strings, schemas and biases may say as much as a prompt."""

_log = logging.getLogger(__name__)


class RequestLog:
    """Called with every request that has ended; returns at once and raises nothing."""

    def __init__(
        self,
        target: str,
        store: MetricStore,
        decode: Callable[[list[int]], str] | None,
        limit: int = MAX_WAITING,
    ) -> None:
        """target: a path, or /dev/fd/N for a descriptor of this process; decode: makes prompts readable, which are logged with
        it alone. Raises `StartupError` for a file that cannot be written."""
        self._file = _LogFile(target)
        self._store = store
        self._decode = decode
        self._waiting: queue.Queue[Ended | None] = queue.Queue(limit)
        self._tokens = 0
        """That wait."""
        self._lost = 0
        """Lines since the last one that was written."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def __call__(self, ended: Ended) -> None:
        tokens = _tokens(ended)
        with self._lock:
            if self._tokens + tokens > MAX_WAITING_TOKENS:
                self._lose()
                return
            try:
                self._waiting.put_nowait(ended)
            except queue.Full:
                self._lose()
                return
            self._tokens += tokens

    def close(self) -> None:
        """Waits until everything is written, two seconds at most."""
        try:
            self._waiting.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)

    def _lose(self) -> None:
        """With the lock."""
        self._lost += 1
        self._store.add(REQUEST_LOG_LOST)

    def _run(self) -> None:
        while (ended := self._waiting.get()) is not None:
            try:
                line = self._line(ended)
            except Exception:  # one that cannot be told must not end the log
                _log.exception("request %s could not be logged", ended.request_id)
                line = b""
            with self._lock:
                self._tokens -= _tokens(ended)
                lost = self._lost
            if lost:
                line = msgspec.json.encode({"lost": lost}) + b"\n" + line
            written = bool(line) and self._file.write(line)
            with self._lock:
                if written:
                    self._lost -= lost
                else:
                    self._lose()

    def _line(self, ended: Ended) -> bytes:
        entry = as_entry(ended)
        if self._decode is not None:
            record = ended.record
            entry["prompts"] = [self._decode(prompt.text_ids) for prompt in record.prompts]
            entry["answers"] = [choice.text for choice in record.choices]
        return msgspec.json.encode(entry) + b"\n"


class _LogFile:
    """Lines at the end of a file. One that is moved away, as logrotate does, is made anew."""

    def __init__(self, target: str) -> None:
        self._path = None if target.startswith("/dev/fd/") else Path(target)
        self._descriptor = int(target.rpartition("/")[2]) if self._path is None else -1
        self._failed = False
        try:
            self._open()
        except OSError as error:
            raise StartupError(
                f"--request_log {target}: {error}", "Name a file that can be written."
            ) from error

    def write(self, data: bytes) -> bool:
        """Whether it is all there. Waits for a reader who is slow."""
        try:
            self._open()
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:  # another process made it non-blocking
                    select.select([], [self._descriptor], [])
        except OSError as error:
            if not self._failed:
                _log.error("the request log cannot be written: %s", error)
            self._failed = True
            return False
        self._failed = False
        return True

    def _open(self) -> None:
        if self._path is None or self._is_open(self._path):
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)

    def _is_open(self, path: Path) -> bool:
        if self._descriptor < 0:
            return False
        try:
            there, ours = os.stat(path), os.fstat(self._descriptor)
        except FileNotFoundError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def as_entry(ended: Ended) -> dict[str, Any]:
    """Without any text of the request or the answer."""
    record = ended.record
    params = record.prompts[0].params
    entry: dict[str, Any] = {
        "time": datetime.fromtimestamp(ended.arrived, UTC).isoformat(timespec="milliseconds"),
        "request_id": ended.request_id,
        "answer_id": record.names[-1],
        "route": ended.route,
        "stream": record.stream,
        "outcome": ended.outcome,
        "finish_reasons": ended.finish_reasons,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "output_tokens": record.output_tokens,
        "images": sum(len(prompt.images) for prompt in record.prompts),
        "queue_ms": _ms(ended.queue_seconds),
        "prefill_ms": _ms(ended.prefill_seconds),
        "decode_ms": _ms(ended.decode_seconds),
        "first_token_ms": _ms(ended.first_token_seconds),
        "total_ms": _ms(ended.now - ended.arrived),
        "parameters": {name: getattr(params, name) for name in _PARAMETERS},
    }
    if ended.error is not None:
        entry["error"] = {"type": type(ended.error).__name__, "param": ended.error.param}
    return entry


def _tokens(ended: Ended) -> int:
    return ended.record.prompt_tokens + sum(len(choice.token_ids) for choice in ended.record.choices)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)

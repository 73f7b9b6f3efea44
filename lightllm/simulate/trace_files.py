"""Traces that services have published: when requests came, and how long they were.

    Mooncake    JSON lines: timestamp (ms), input_length, output_length, hash_ids, one for each block of 512 prompt tokens;
                equal leading ids are equal prefixes (github.com/kvcache-ai/Mooncake, FAST'25)
    BurstGPT    CSV: Timestamp (s), Model, Request tokens, Response tokens, Total tokens, Log Type (github.com/HPMLL/BurstGPT)
    Azure       CSV: TIMESTAMP (date and time), ContextTokens, GeneratedTokens (github.com/Azure/AzurePublicDataset, 2023, 2024)

Requests without a prompt or without an answer (failures) are left out. Files are read line by line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightllm.errors import InvalidOption
from lightllm.simulate.trace import TraceRequest, unique_ids

HASH_BLOCK = 512
_FIRST_HASHED = 1 << 23
"""Token ids from here on belong to hashed blocks."""
_MOST_HASHES = ((1 << 31) - _FIRST_HASHED) // HASH_BLOCK


class Row(NamedTuple):
    seconds: float
    prompt_len: int
    output_len: int
    hash_ids: list[int]


class FileTrace:
    """A trace in one of the formats above, told apart by its first line. Raises `InvalidOption`."""

    max_new_tokens = 4096

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        try:
            with path.open(encoding="utf-8") as file:
                first = file.readline()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidOption(f"--trace {path} cannot be read: {error}.") from error
        if first.lstrip().startswith("{"):
            self._read = _mooncake
        elif "ContextTokens" in first:
            self._read = _azure
        elif "Request tokens" in first:
            self._read = _burst_gpt
        else:
            raise InvalidOption(
                f"--trace {path} is none of the known formats.", "Known: Mooncake, BurstGPT, Azure."
            )

    def recorded_rate(self, count: int) -> float:
        """Requests a second of the first `count`."""
        found, first, last = 0, 0.0, 0.0
        for row in islice(self._rows(), count):
            first = first if found else row.seconds
            last, found = row.seconds, found + 1
        if last <= first:
            raise InvalidOption(f"--trace {self._path}: {found} requests in no time have no rate.")
        return (found - 1) / (last - first)

    def requests(self, count: int, rate: float, seed: int) -> Iterator[TraceRequest]:
        """As recorded, but faster or slower: the first `count` come `rate` a second. `seed` has no effect."""
        scale = 0.0 if rate == float("inf") else self.recorded_rate(count) / rate
        first, latest = None, 0.0
        for serial, row in enumerate(islice(self._rows(), count)):
            first = row.seconds if first is None else first
            latest = max(latest, (row.seconds - first) * scale)
            yield TraceRequest(latest, _prompt(row, serial), row.output_len)

    def _rows(self) -> Iterator[Row]:
        with self._path.open(encoding="utf-8", newline="") as file:
            try:
                for row in self._read(file):
                    if row.prompt_len > 0 and row.output_len > 0:
                        yield row
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidOption(f"--trace {self._path} has a malformed request: {error!r}.") from error


def _mooncake(lines: Iterator[str]) -> Iterator[Row]:
    for line in lines:
        if line.strip():
            values = json.loads(line)
            yield Row(
                values["timestamp"] / 1000, int(values["input_length"]), int(values["output_length"]),
                values.get("hash_ids") or [],
            )  # fmt: skip


def _burst_gpt(lines: Iterator[str]) -> Iterator[Row]:
    for values in csv.DictReader(lines):
        yield Row(
            float(values["Timestamp"]), int(values["Request tokens"]), int(values["Response tokens"]), []
        )


def _azure(lines: Iterator[str]) -> Iterator[Row]:
    for values in csv.DictReader(lines):
        seconds = datetime.fromisoformat(values["TIMESTAMP"]).timestamp()
        yield Row(seconds, int(values["ContextTokens"]), int(values["GeneratedTokens"]), [])


def _prompt(row: Row, serial: int) -> np.ndarray:
    """int32 [prompt_len]: a block of ids for each hash; what no hash covers is like no other prompt."""
    if not row.hash_ids:
        return unique_ids(serial, row.prompt_len)
    blocks = np.array([hash_id % _MOST_HASHES for hash_id in row.hash_ids], dtype=np.int64)
    tokens = _FIRST_HASHED + blocks[:, None] * HASH_BLOCK + np.arange(HASH_BLOCK)
    shared = tokens.ravel()[: row.prompt_len].astype(np.int32)
    rest = row.prompt_len - len(shared)
    return np.concatenate([shared, unique_ids(serial, rest)]) if rest else shared

"""The ring of the last minutes' samples."""

from __future__ import annotations

from pathlib import Path

import msgspec

from lightllm.ipc.metric_history import HISTORY_SECONDS, HistoryWriter, columns, read_history
from lightllm.protocol.samples import Sample

FIELDS = [field.name for field in msgspec.structs.fields(Sample)]


def sample(number: int) -> Sample:
    return Sample(*(float(number + place) for place in range(len(FIELDS))))


def test_the_latest_samples_are_read_oldest_first(tmp_path: Path) -> None:
    path = tmp_path / "history"
    assert read_history(path) == []
    writer = HistoryWriter(path)
    assert read_history(path) == []
    for number in range(3):
        writer.append(sample(number))
    assert read_history(path) == [sample(0), sample(1), sample(2)]
    for number in range(3, 2 * HISTORY_SECONDS):
        writer.append(sample(number))
    assert read_history(path) == [sample(n) for n in range(HISTORY_SECONDS, 2 * HISTORY_SECONDS)]


def test_another_writer_goes_on_where_one_was_killed_also_amid_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "history"
    HistoryWriter(path).append(sample(1))
    before = path.read_bytes()
    HistoryWriter(path).append(sample(2))
    half = bytearray(path.read_bytes())
    half[:8] = before[:8]  # written, and not counted yet
    path.write_bytes(half)
    assert read_history(path) == [sample(1)]
    HistoryWriter(path).append(sample(3))
    assert read_history(path) == [sample(1), sample(3)]


def test_columns_hold_a_list_for_each_field() -> None:
    found = columns([sample(0), sample(10)])
    assert list(found) == FIELDS and found[FIELDS[0]] == [0.0, 10.0] and found[FIELDS[2]] == [2.0, 12.0]

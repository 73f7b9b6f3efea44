"""The map of the KV memory in shared memory: drawn while somebody looks."""

from __future__ import annotations

from pathlib import Path

from lightllm.ipc.kv_map import DRAW_SECONDS, MAP_CELLS, WATCH_SECONDS, Cells, KvMap, KvMapReader, KvMapWriter


def a_map(drawn: float, cells: int = 4, slots: int = 100) -> KvMap:
    counts = [slots // cells] * cells
    return KvMap(drawn, slots, 3, 2, 1, slots - 5, 7, Cells(counts, counts, counts))


def test_it_is_due_while_somebody_looks_once_a_second(tmp_path: Path) -> None:
    writer, reader = KvMapWriter(tmp_path / "map"), KvMapReader(tmp_path / "map")
    assert not writer.due(100.0)
    reader.watch(100.0)
    assert writer.due(100.0) and writer.due(100.0 + WATCH_SECONDS - 0.1)
    assert not writer.due(100.0 + WATCH_SECONDS)
    reader.watch(200.0)
    writer.write(a_map(200.0))
    assert not writer.due(200.0 + DRAW_SECONDS / 2) and writer.due(200.0 + DRAW_SECONDS)


def test_what_is_read_is_what_was_written_last(tmp_path: Path) -> None:
    reader = KvMapReader(tmp_path / "map")
    reader.watch(1.0)  # nobody draws yet
    assert reader.read() is None
    writer = KvMapWriter(tmp_path / "map")
    assert reader.read() is None
    for drawn in (1.0, 2.0):
        writer.write(a_map(drawn))
    assert reader.read() == a_map(2.0)
    assert KvMapWriter(tmp_path / "map").due(3.0) is False  # of a Router that is started again


def test_the_largest_map_has_room(tmp_path: Path) -> None:
    writer, reader = KvMapWriter(tmp_path / "map"), KvMapReader(tmp_path / "map")
    largest = a_map(1e9, MAP_CELLS, MAP_CELLS * 2**31)
    writer.write(largest)
    assert reader.read() == largest

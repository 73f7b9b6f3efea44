"""Small files that other processes read: a reader finds the one before or the new one, never a part."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """One process writes it."""
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(data)
    new.replace(path)

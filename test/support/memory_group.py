"""A memory control group of its own for a server under test, as a container has one (root and a writable v1 or v2 only)."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_KILLED = "oom_kill "


class MemoryGroup:
    def __init__(self, folder: Path, version: int) -> None:
        self.folder, self._version = folder, version

    def command(self, command: Sequence[str]) -> list[str]:
        """`command`, started within this group."""
        return ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.folder), *command]

    def limit(self, size: int) -> None:
        name = "memory.limit_in_bytes" if self._version == 1 else "memory.max"
        (self.folder / name).write_text(str(size))

    def kills(self) -> int:
        """How many processes the kernel has ended for want of memory."""
        file = self.folder / ("memory.oom_control" if self._version == 1 else "memory.events")
        return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(_KILLED))


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup | None]:
    """A group of at most `limit` bytes; None where none can be made."""
    group = _make()
    if group is None:
        yield None
        return
    try:
        group.limit(limit)
        yield group
    finally:
        end = time.monotonic() + 10
        while (group.folder / "cgroup.procs").read_text() and time.monotonic() < end:
            time.sleep(0.05)
        group.folder.rmdir()


def _make() -> MemoryGroup | None:
    for version, parent in ((1, _ROOT / "memory"), (2, _ROOT)):
        folder = parent / f"lightllm-test-{os.getpid()}"
        file = folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")
        try:
            folder.mkdir()
        except OSError:
            continue
        if file.exists() and os.access(file, os.W_OK):
            return MemoryGroup(folder, version)
        folder.rmdir()
    return None

"""What the processes of a server hold: memory and descriptors, to be compared before and after a load."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    descriptors: int
    resident: int
    """KiB"""


def tree(root: int) -> list[int]:
    """Process numbers of `root` and all that it has started."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            todo += [int(child) for child in (task / "children").read_text().split()]
    return found


def usage(pids: list[int]) -> dict[int, Usage]:
    found = {}
    for pid in pids:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        found[pid] = Usage(len(list(Path(f"/proc/{pid}/fd").iterdir())), resident)
    return found


def check_growth(before: Mapping[int, Usage], after: Mapping[int, Usage], resident: int) -> None:
    """Fails where a process was replaced, or grew by more than `resident` KiB or four descriptors."""
    assert after.keys() == before.keys(), "a process was replaced or is left over"
    for pid, now in after.items():
        was = before[pid]
        assert now.descriptors <= was.descriptors + 4, (
            f"process {pid} leaks descriptors: {was.descriptors} -> {now.descriptors}"
        )
        assert now.resident <= was.resident + resident, (
            f"process {pid} grew from {was.resident} to {now.resident} KiB"
        )


def wait_until_idle(url: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with urllib.request.urlopen(f"{url}/token_load", timeout=10) as response:
            load = json.loads(response.read())
        if all(value == 0 for value in load.values()):
            return
        assert time.monotonic() < end, f"the server still holds tokens: {load}"
        time.sleep(0.05)

"""Files that hold secrets: which other users can read them?"""

from __future__ import annotations

import stat
from pathlib import Path


def readable_by_others(path: str | Path) -> bool:
    """Whether the file's mode lets its group or everybody read it (as mounted secrets often do: then it is their owner's
    choice)."""
    return bool(Path(path).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))

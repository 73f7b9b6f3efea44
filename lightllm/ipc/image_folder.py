"""Where the files of the image cache are: in shared memory if it is large enough, else in the runtime folder.

All processes find them at `RuntimeDir.images_dir`, which leads there.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from lightllm.errors import StartupError
from lightllm.ipc.runtime_dir import RuntimeDir

SHARED_MEMORY = Path("/dev/shm")
DEFAULT_SHARE = 0.5
"""Share of a file system's free room that the cache takes, unless told."""
DEFAULT_LARGEST = 8 << 30
"""Bytes that the cache takes at most, unless told."""


@dataclasses.dataclass
class ImageFolder:
    capacity_bytes: int
    """--cache_capacity_bytes, as given or found."""
    _owner: RuntimeDir | None = None
    """The folder in shared memory."""

    def remove(self) -> None:
        """What is in the runtime folder goes with that."""
        if self._owner is not None:
            self._owner.remove()


def make_image_folder(
    runtime: RuntimeDir, capacity_bytes: int | None, largest_image: int, shared: Path = SHARED_MEMORY
) -> ImageFolder:
    """Makes the folder; what earlier servers left in shared memory is removed. Raises `StartupError` when there is not enough
    room anywhere.

    capacity_bytes: --cache_capacity_bytes, None takes a share of what is free. largest_image: bytes of the files of the largest
    image, which must have room in any case.
    """
    if capacity_bytes is not None and capacity_bytes < largest_image:
        raise StartupError(
            f"--cache_capacity_bytes {capacity_bytes} is too small for one image of this model: it needs {largest_image}.",
            "Give more, or --disable_vision.",
        )
    needed = largest_image if capacity_bytes is None else capacity_bytes
    found = []
    for base in (shared, runtime.path):
        free = _free_bytes(base)
        if free >= needed:
            share = max(largest_image, min(DEFAULT_LARGEST, int(free * DEFAULT_SHARE)))
            folder = _make_in(base, runtime)
            if folder is not None:
                return dataclasses.replace(folder, capacity_bytes=capacity_bytes or share)
        found.append(f"{base} has {free >> 20}")
    raise StartupError(
        f"Images need {-(-needed >> 20)} MiB of shared memory; {', '.join(found)} MiB free.",
        "Make room there (a container: --shm-size), lower --cache_capacity_bytes, or give --disable_vision.",
    )


def _make_in(base: Path, runtime: RuntimeDir) -> ImageFolder | None:
    """None: no folder can be made there."""
    if base == runtime.path:
        runtime.images_dir.mkdir(mode=0o700)
        return ImageFolder(0)
    try:
        owner = RuntimeDir.create(base)
    except StartupError:  # a file system that cannot be written to: the next place is tried
        return None
    runtime.images_dir.symlink_to(owner.path)
    return ImageFolder(0, owner)


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0

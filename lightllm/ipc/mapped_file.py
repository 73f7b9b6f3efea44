"""Files in memory that several processes map: made with all the room that they need, or not at all."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from pathlib import Path

from lightllm.errors import StartupError


def map_file(path: Path, size: int) -> mmap.mmap:
    """Makes the file with `size` bytes, or takes the one that is there; it is never shrunk, for a process that maps it already
    would be killed by SIGBUS. So would a process that writes into it where the file system is full: that is found out here.
    A reader finds no file, or one that has its size: it gets its name last. One process makes it. Raises `StartupError`."""
    new = path.with_name(f".{path.name}.new")
    made = not path.exists()
    try:
        descriptor = os.open(new if made else path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            _reserve(descriptor, size)
            if made:
                new.replace(path)
            return mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StartupError(
            f"{path} cannot be made: {error.strerror}. {describe_room(path.parent)}",
            "Make room there, or set LIGHTLLM_RUNTIME_BASE to another folder.",
        ) from error


def _reserve(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(descriptor, max(size, os.fstat(descriptor).st_size))


def describe_room(folder: Path) -> str:
    """How much room a folder has, as a sentence."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"{folder}: {error.strerror}."
    return f"{folder} has {usage.free >> 10} of {usage.total >> 10} KiB free."

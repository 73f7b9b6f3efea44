"""file:// URLs: files below `--allowed_local_media_path`, wherever links lead."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lightllm.errors import InvalidImage
from lightllm.images.limits import ImageLimits


def read_local_file(url: str, limits: ImageLimits, field: str) -> bytes:
    """Blocks. Raises `InvalidImage`; outside the folder it does not tell whether there is such a file."""
    if limits.local_path is None:
        raise InvalidImage(
            f"{field}: this server reads no file URLs (--allowed_local_media_path)", param=field
        )
    path = _path_of(url, field)
    root = Path(os.path.realpath(limits.local_path))
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(root):
        raise InvalidImage(
            f"{field}: only files below --allowed_local_media_path are read, links followed", param=field
        )
    try:
        with open(real, "rb", opener=_open_as_it_is) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InvalidImage(f"{field}: {path} is no regular file", param=field)
            if status.st_size > limits.max_bytes:
                raise InvalidImage(
                    f"{field}: the image has {status.st_size} bytes, at most {limits.max_bytes} (--max_image_mb)",
                    param=field,
                )
            return file.read(limits.max_bytes)
    except OSError as error:
        raise InvalidImage(f"{field}: {path} cannot be read ({error.strerror})", param=field) from error


def _open_as_it_is(path: str, flags: int) -> int:
    """The path is free of links; one that takes its place meanwhile is not followed, and a pipe does not block."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _path_of(url: str, field: str) -> str:
    try:
        parts = urlsplit(url)
        path = unquote(parts.path, errors="strict")
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidImage(f"{field}: {url[:60]!r} is no valid URL", param=field) from error
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise InvalidImage(
            f"{field}: a file URL must read file:///folder/image.png, got {url[:60]!r}", param=field
        )
    return path

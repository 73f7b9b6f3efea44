"""Where responses are kept for their callers: in files that all Http workers reach, bounded in bytes and in time.

    <folder>/<digest of the caller's key, or "anybody">/<response id>.input      what was asked, and which response it follows
    <folder>/<digest of the caller's key, or "anybody">/<response id>.response   the response object, as clients get it
    <folder>/<digest of the caller's key, or "anybody">/<response id>.events     of a stream in the background: its events so far

A response is found by its id and its caller together, so nobody reads, continues or deletes another's. It lasts for some time
after its last use; beyond the bound in bytes the caller that holds most loses what it has not used for longest. Each worker looks
at the folder when it has written a share of the bound, and makes so much room that the others' shares fit as well.

Every method works with files: outside the event loop, but for `finish`, `append` and `events`, which write or read little.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from lightllm.ipc.whole_files import write_whole

_log = logging.getLogger(__name__)
_ID = re.compile(r"resp_[0-9a-f]{48}")
_PARTS = (".input", ".response")
_EVENTS = ".events"
_SPARE = 16
"""One part of so many of the bound is what workers may write between two looks at the folder."""
_BLOCK = 4096
"""Bytes that a file takes at least."""


def new_id() -> str:
    return f"resp_{secrets.token_hex(24)}"


class StoredInput(msgspec.Struct, frozen=True):
    items: list[dict[str, Any]]
    """As `InputItem` has them, each with an id."""
    previous: str | None = None
    """Id of the response that this one follows."""


class _Entry(msgspec.Struct, gc=False):
    """One response in the folder."""

    used: float = 0.0
    """`time.time()`"""
    size: int = 0


class ResponseStore:
    def __init__(self, folder: Path, limit_bytes: int, seconds: float, workers: int = 1) -> None:
        """seconds: that a response lasts after its last use; workers: that share the folder."""
        self._folder = folder
        self._limit = limit_bytes
        self._seconds = seconds
        self._share = limit_bytes // (_SPARE * workers)
        self._unseen = self._share
        """Bytes that this worker has written since it looked: the first time it looks at once."""
        self._lock = threading.Lock()

    def begin(self, owner: str, response_id: str, asked: StoredInput, response: bytes) -> bool:
        """Keeps a response that has no answer yet; False: it is too large, or cannot be written."""
        data = msgspec.json.encode(asked)
        size = _taken(len(data)) + _taken(len(response))
        if size > self._limit - self._limit // _SPARE:
            return False
        self._make_room(size)
        folder = self._folder / _owners_folder(owner)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for suffix, content in zip(_PARTS, (data, response), strict=True):
                write_whole(folder / (response_id + suffix), content)
        except OSError as error:
            _log.warning("a response is not kept: %s", error)
            with contextlib.suppress(OSError):
                self.delete(owner, response_id)
            return False
        return True

    def finish(self, owner: str, response_id: str, response: bytes) -> None:
        """Its answer, unless it was deleted meanwhile."""
        if not self._file(owner, response_id, ".input").exists():
            return
        with self._lock:
            self._unseen += _taken(len(response))
        try:
            write_whole(self._file(owner, response_id, ".response"), response)
        except OSError as error:
            _log.warning("a response is not kept: %s", error)
            with contextlib.suppress(OSError):
                self.delete(owner, response_id)

    def append(self, owner: str, response_id: str, event: bytes) -> None:
        """One more event of a stream in the background, unless the response was deleted meanwhile."""
        if not self._file(owner, response_id, ".input").exists():
            return
        with self._lock:
            self._unseen += len(event)
        try:
            with self._file(owner, response_id, _EVENTS).open("ab") as file:
                file.write(event)
        except OSError as error:
            _log.warning("an event of a response is not kept: %s", error)

    def events(self, owner: str, response_id: str, position: int, size: int) -> bytes | None:
        """At most `size` bytes of its events from a position on; None: none are kept."""
        if not _ID.fullmatch(response_id):
            return None
        try:
            with self._file(owner, response_id, _EVENTS).open("rb") as file:
                file.seek(position)
                return file.read(size)
        except FileNotFoundError:
            return None

    def response(self, owner: str, response_id: str) -> bytes | None:
        """The response object, JSON; None: there is none of this caller."""
        return self._read(owner, response_id, ".response")

    def asked(self, owner: str, response_id: str) -> StoredInput | None:
        data = self._read(owner, response_id, ".input")
        return None if data is None else msgspec.json.decode(data, type=StoredInput)

    def delete(self, owner: str, response_id: str) -> bool:
        """Whether there was one."""
        found = self.response(owner, response_id) is not None
        if _ID.fullmatch(response_id):
            for suffix in (*_PARTS, _EVENTS):
                self._file(owner, response_id, suffix).unlink(missing_ok=True)
        return found

    def _file(self, owner: str, response_id: str, suffix: str) -> Path:
        return self._folder / _owners_folder(owner) / (response_id + suffix)

    def _read(self, owner: str, response_id: str, suffix: str) -> bytes | None:
        """A part of a response, which is used now."""
        if not _ID.fullmatch(response_id):
            return None
        now = time.time()
        try:
            if now - self._file(owner, response_id, ".response").stat().st_mtime > self._seconds:
                return None
            data = self._file(owner, response_id, suffix).read_bytes()
            for each in _PARTS:
                os.utime(self._file(owner, response_id, each), (now, now))
        except FileNotFoundError:
            return None
        return data

    def _make_room(self, size: int) -> None:
        """For so many bytes; looks at the folder if this worker's share would be used up."""
        with self._lock:
            self._unseen += size
            if self._unseen < self._share:
                return
            self._unseen = size
        self._sweep(self._limit - self._limit // _SPARE - size)

    def _sweep(self, target: int) -> None:
        """Removes what is too old, and then what is beyond `target` bytes."""
        callers = {folder: self._entries(folder) for folder in _folders(self._folder)}
        oldest = time.time() - self._seconds
        held: dict[Path, list[tuple[str, _Entry]]] = {}
        for folder, entries in callers.items():
            for name in [name for name, entry in entries.items() if entry.used < oldest]:
                _remove(folder, name)
                del entries[name]
            held[folder] = sorted(entries.items(), key=lambda pair: pair[1].used, reverse=True)
        totals = {folder: sum(entry.size for _, entry in entries) for folder, entries in held.items()}
        total = sum(totals.values())
        while total > target and total > 0:
            folder = max(totals, key=totals.__getitem__)
            name, entry = held[folder].pop()
            _remove(folder, name)
            totals[folder] -= entry.size
            total -= entry.size

    @staticmethod
    def _entries(folder: Path) -> dict[str, _Entry]:
        """Of one caller, by the files' names without their ends."""
        entries: dict[str, _Entry] = {}
        for file in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                status = file.stat()
                entry = entries.setdefault(file.name.lstrip(".").partition(".")[0], _Entry())
                entry.used = max(entry.used, status.st_mtime)
                entry.size += _taken(status.st_size)
        return entries


def _owners_folder(owner: str) -> str:
    return owner or "anybody"


def _taken(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _folders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(folder: Path, name: str) -> None:
    for suffix in (*_PARTS, _EVENTS):
        (folder / (name + suffix)).unlink(missing_ok=True)
        (folder / f".{name}{suffix}.new").unlink(missing_ok=True)

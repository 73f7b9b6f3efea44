"""The API keys that a server knows, as digests: those of its options, and those of a file that may change while it runs.

The file has one key a line: the key itself or `sha256:` and the hexadecimal digest of it, then `admin` where it is a key
for operators. Empty lines and lines that begin with # mean nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightllm.errors import InvalidOption

_ADMIN = "admin"
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


class KeyRing:
    """Each key is compared in constant time."""

    def __init__(self, keys: Iterable[str], admin_keys: Iterable[str], file: str | None = None) -> None:
        """Raises `InvalidOption` for a file that cannot be read."""
        self._given = [digest_of(key.encode()) for key in keys]
        self._given_admin = [digest_of(key.encode()) for key in admin_keys]
        self._file = file
        self._keys: list[bytes] = []
        self._admin_keys: list[bytes] = []
        self.reload()

    def reload(self) -> None:
        """Reads the file anew. Raises `InvalidOption`; the keys are those of before then."""
        keys, admin_keys = ([], []) if self._file is None else read_key_file(self._file)
        self._keys, self._admin_keys = [*self._given, *keys], [*self._given_admin, *admin_keys]

    @property
    def needed(self) -> bool:
        """Without a key no route but the health checks is open."""
        return bool(self._keys) or self._file is not None

    @property
    def admin_needed(self) -> bool:
        return bool(self._admin_keys)

    def opens(self, digest: bytes) -> bool:
        return _among(self._keys, digest)

    def opens_all(self, digest: bytes) -> bool:
        return _among(self._admin_keys, digest)


def read_key_file(path: str) -> tuple[list[bytes], list[bytes]]:
    """Digests of the keys and of the admin keys. Raises `InvalidOption` for a file without keys: it may be half written."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidOption(f"--api_key_file {path} cannot be read: {reason}.") from error
    keys: list[bytes] = []
    admin_keys: list[bytes] = []
    for number, line in enumerate(lines, 1):
        key, *words = line.split() or ["#"]
        if key.startswith("#"):
            continue
        if words not in ([], [_ADMIN]):
            raise InvalidOption(
                f"--api_key_file {path}, line {number}: not one key, and {_ADMIN!r} behind it or nothing."
            )
        (admin_keys if words else keys).append(_digest_in(key, f"--api_key_file {path}, line {number}"))
    if not keys and not admin_keys:
        raise InvalidOption(f"--api_key_file {path} holds no key.")
    return keys, admin_keys


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _digest_in(key: str, place: str) -> bytes:
    if not key.startswith("sha256:"):
        return digest_of(key.encode())
    found = _DIGEST.fullmatch(key)
    if found is None:
        raise InvalidOption(f"{place}: `sha256:` needs 64 hexadecimal digits behind it.")
    return bytes.fromhex(found[1])


def _among(known: Sequence[bytes], digest: bytes) -> bool:
    matches = [hmac.compare_digest(digest, one) for one in known]
    return any(matches)

"""The API keys that a server knows, as digests: those of its options, and those of a file that may change while it runs.

The file has one key a line: the key itself or `sha256:` and the hexadecimal digest of it, then `admin` where it is a key
for operators. Empty lines and lines that begin with # mean nothing. A controller's file may say behind a key what it may do:
`tenant=NAME requests_per_minute=N tokens_per_minute=N priority=N`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightllm.errors import InvalidOption

_ADMIN = "admin"
_RATES = ("requests_per_minute", "tokens_per_minute")
_TERMS = ("tenant", *_RATES, "priority")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclasses.dataclass(frozen=True)
class KeyTerms:
    """What a key may do."""

    tenant: str = ""
    """Whose it is: keys of one tenant share what it may do; "": the key is one on its own."""
    requests_per_minute: float = math.inf
    tokens_per_minute: float = math.inf
    """Of prompts and answers."""
    priority: int = 0
    """The best that its requests may have; less is better."""


class KeyRing:
    """Each key is compared in constant time."""

    def __init__(
        self,
        keys: Iterable[str],
        admin_keys: Iterable[str],
        file: str | None = None,
        with_terms: bool = False,
    ) -> None:
        """with_terms: whether the file may have them. Raises `InvalidOption` for a file that cannot be read."""
        self._with_terms = with_terms
        self.terms: dict[str, KeyTerms] = {}
        """By the hexadecimal digest of the key."""
        self._given = [digest_of(key.encode()) for key in keys]
        self._given_admin = [digest_of(key.encode()) for key in admin_keys]
        self._file = file
        self._keys: list[bytes] = []
        self._admin_keys: list[bytes] = []
        self.reload()

    def reload(self) -> None:
        """Reads the file anew. Raises `InvalidOption`; the keys are those of before then."""
        terms: dict[str, KeyTerms] = {}
        keys, admin_keys = (
            ([], []) if self._file is None else read_key_file(self._file, terms if self._with_terms else None)
        )
        self.terms = terms
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


def read_key_file(path: str, terms: dict[str, KeyTerms] | None = None) -> tuple[list[bytes], list[bytes]]:
    """Digests of the keys and of the admin keys. terms: filled in; None: the file may have none. Raises `InvalidOption`, also for
    a file without keys: it may be half written."""
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
        place = f"--api_key_file {path}, line {number}"
        digest = _digest_in(key, place)
        if terms is not None and words and words != [_ADMIN]:
            terms[digest.hex()] = _terms_of(words, place)
            words = []
        if words not in ([], [_ADMIN]):
            raise InvalidOption(f"{place}: not one key, and {_ADMIN!r} behind it or nothing.")
        (admin_keys if words else keys).append(digest)
    if not keys and not admin_keys:
        raise InvalidOption(f"--api_key_file {path} holds no key.")
    _check_tenants(terms or {}, path)
    return keys, admin_keys


def _terms_of(words: Sequence[str], place: str) -> KeyTerms:
    """Raises `InvalidOption`."""
    given: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or name in given or name not in _TERMS:
            raise InvalidOption(
                f"{place}: {word!r} is none of {', '.join(f'{each}=' for each in _TERMS)}, once each."
            )
        given[name] = value
    try:
        rates = {name: float(given[name]) for name in _RATES if name in given}
        terms = KeyTerms(given.get("tenant", ""), priority=int(given.get("priority", 0)), **rates)
    except ValueError as error:
        raise InvalidOption(f"{place}: {error}.") from error
    if not all(value > 0 for value in rates.values()):
        raise InvalidOption(f"{place}: rates are above 0.")
    return terms


def _check_tenants(terms: dict[str, KeyTerms], path: str) -> None:
    """Raises `InvalidOption`: two keys of a tenant say different things of it."""
    said: dict[str, tuple[float, float]] = {}
    for each in terms.values():
        rates = each.requests_per_minute, each.tokens_per_minute
        if each.tenant and said.setdefault(each.tenant, rates) != rates:
            raise InvalidOption(
                f"--api_key_file {path}: keys of the tenant {each.tenant!r} have different rates."
            )


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

"""Keys from a file: forms, mistakes, and what happens when it changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lightllm.errors import InvalidOption
from lightllm.http.key_ring import KeyRing, digest_of


def opened_by(ring: KeyRing, *keys: str) -> list[tuple[bool, bool]]:
    return [(ring.opens(digest_of(k.encode())), ring.opens_all(digest_of(k.encode()))) for k in keys]


def test_a_file_holds_keys_and_digests_of_clients_and_operators(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256("schlüssel".encode()).hexdigest()
    file.write_text(f"# clients\n\n  first  \nsha256:{digest}\nroot\tadmin\r\n#gone\n", "utf-8")
    ring = KeyRing(["given"], [], str(file))
    assert ring.needed and ring.admin_needed
    assert opened_by(ring, "first", "schlüssel", "root", "given") == [(True, False), (True, False), (False, True), (True, False)]  # fmt: skip
    assert opened_by(ring, "gone", "#gone", f"sha256:{digest}", digest, "") == [(False, False)] * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no key"),
        (b"# nothing\n", "holds no key"),
        (b"one two\n", "line 1: not one key"),
        (b"fine\nkey admin admin\n", "line 2: not one key"),
        (b"sha256:abc\n", "line 1: `sha256:` needs 64 hexadecimal digits"),
        (b"\xff\xfe\n", "cannot be read: it is not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_the_keys_stay(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n")
    ring = KeyRing([], [], str(file))
    file.write_bytes(content)
    with pytest.raises(InvalidOption, match=message):
        ring.reload()
    assert opened_by(ring, "first") == [(True, False)]
    with pytest.raises(InvalidOption, match=message):
        KeyRing([], [], str(file))


def test_another_content_holds_from_the_reload_on(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("first\n")
    ring = KeyRing([], [], str(file))
    file.write_text("second\n")
    assert opened_by(ring, "first", "second") == [(True, False), (False, False)]
    ring.reload()
    assert opened_by(ring, "first", "second") == [(False, False), (True, False)]
    file.unlink()
    with pytest.raises(InvalidOption, match="No such file"):
        ring.reload()
    assert ring.needed

"""Keys from a file: forms, mistakes, and what happens when it changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from lightllm.errors import InvalidOption
from lightllm.http.key_ring import KeyRing, KeyTerms, digest_of


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


def test_a_controllers_file_says_what_keys_may_do(tmp_path):
    file = tmp_path / "keys"
    file.write_text(
        "first tenant=a requests_per_minute=60 tokens_per_minute=1e4 priority=2\nsecond\nthird admin\n"
    )
    ring = KeyRing([], [], str(file), with_terms=True)
    assert ring.terms == {digest_of(b"first").hex(): KeyTerms("a", 60.0, 1e4, 2)}
    assert all(ring.opens(digest_of(key)) for key in (b"first", b"second")) and ring.opens_all(
        digest_of(b"third")
    )
    with pytest.raises(InvalidOption, match="line 1"):
        KeyRing([], [], str(file))  # a server holds to no terms


@pytest.mark.parametrize(
    "line, reason",
    [
        ("key speed=3", "'speed=3' is none of"), ("key priority=high", "line 1"), ("key requests_per_minute=0", "above 0"),
        ("key tokens_per_minute=nan", "above 0"), ("key admin priority=1", "'admin' is none of"), ("key priority=1 priority=2", "once each"),
        ("one tenant=a requests_per_minute=1\ntwo tenant=a", "different rates"),
    ],
)  # fmt: skip
def test_terms_that_make_no_sense_are_named(tmp_path, line, reason):
    file = tmp_path / "keys"
    file.write_text(line)
    with pytest.raises(InvalidOption, match=reason):
        KeyRing([], [], str(file), with_terms=True)

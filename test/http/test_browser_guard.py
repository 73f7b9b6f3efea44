"""Which addresses only this machine reaches."""

from __future__ import annotations

from lightllm.config import ServerConfig
from lightllm.http.browser_guard import is_loopback


def test_loopback_addresses_are_known_as_such() -> None:
    assert all(
        map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "localhost", "a.localhost", ServerConfig().host))
    )
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "box", "localhost.example", "")))

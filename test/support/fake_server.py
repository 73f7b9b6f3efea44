"""The launch command with fake children: FAKE_CHILDREN="http-0=ready router=ready backend-0=die"."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lightllm.server import api_server, launch
from lightllm.server.plan import ChildSpec


def plan(config: object, listener_fd: int, files: tuple[int, ...]) -> list[ChildSpec]:
    path = {"PYTHONPATH": str(Path(__file__).parents[1])}
    pairs = (entry.split("=") for entry in os.environ["FAKE_CHILDREN"].split())
    return [ChildSpec(name, "support.fake_child", (name, behaviour), path) for name, behaviour in pairs]


if __name__ == "__main__":
    launch.plan_children = plan
    sys.exit(api_server.main())

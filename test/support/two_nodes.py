"""A server of two nodes for tests: two launches on this machine."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

from support.server import SERVER_COMMAND, LightLLMServer

SECRET = {"LIGHTLLM_CLUSTER_SECRET": "the nodes of this test share it"}
JOINED = r"ready: node 1 of 2, ranks 1 to 1 of 2"


def free_port() -> int:
    """One whose successor is free too, below those that the kernel gives to connections: it stays free."""
    while True:
        port = random.randrange(12_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port


class TwoNodes:
    """Both launches; ended whatever happens."""

    def __init__(
        self, options: list[str], *, node_1_options: tuple[str, ...] = (), host: str = "127.0.0.1",
        node_1_secret: dict[str, str] = SECRET, node_1_command: tuple[str, ...] = SERVER_COMMAND,
    ) -> None:  # fmt: skip
        common = ["--nnodes", "2", "--nccl_host", host, "--nccl_port", str(free_port()), *options]
        common += [] if "--tp" in options else ["--tp", "2"]
        self.common = common
        self.node_0 = LightLLMServer([*common, "--node_rank", "0"], environment=SECRET)
        self.node_1 = LightLLMServer(
            [*common, "--node_rank", "1", *node_1_options], environment=node_1_secret, command=node_1_command
        )

    def __enter__(self) -> TwoNodes:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        for name, node in (("node 0", self.node_0), ("node 1", self.node_1)):
            if kind is not None:
                print(f"-- {name}\n{node.log}")
            node.abandon()

    def wait_ready(self) -> str:
        self.node_1.wait_for(JOINED, 120)
        return self.node_0.wait_ready()


def last_error(server: LightLLMServer) -> str:
    """The one line that a launch ends with."""
    (line,) = [line for line in server.log.splitlines() if line.startswith("lightllm: error:")]
    return line


def model_options(path: Path) -> list[str]:
    return [
        "--model_dir", str(path), "--device", "cpu", "--data_type", "fp32", "--max_total_token_num", "4000",
        "--max_req_total_len", "3500", "--check_rounds",
    ]  # fmt: skip

"""Which processes a server consists of: module, arguments, environment of each."""

from __future__ import annotations

import dataclasses

from lightllm.config import ServerConfig
from lightllm.images.serving import serves_images
from lightllm.protocol.health import OBSERVERS
from lightllm.server.environment import backend_environment, helper_environment, visual_environment


@dataclasses.dataclass(frozen=True)
class ChildSpec:
    name: str
    """As the child reports itself: "router", "detokenizer", "http-0", "backend-0", "cache", "visual-0", "metrics", "health"."""
    module: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    """File descriptors that it inherits, besides its channel."""

    @property
    def serves_http(self) -> bool:
        return self.name.startswith("http-")

    @property
    def needed(self) -> bool:
        """Whether requests pass it. Another one is started again however often it ends."""
        return self.name not in OBSERVERS

    @property
    def group(self) -> str:
        """What starts and ends together has this in common: the Model Backends."""
        return "backend" if self.name.startswith("backend-") else self.name


def plan_backends(config: ServerConfig) -> list[ChildSpec]:
    """The Model Backends of this machine: all that runs on a node other than node 0."""
    return [
        ChildSpec(f"backend-{rank}", "lightllm.backend", ("--rank", str(rank)), backend_environment(config))
        for rank in config.node_ranks
    ]


def plan_children(config: ServerConfig, listener_fd: int, files: tuple[int, ...] = ()) -> list[ChildSpec]:
    """All children of node 0 in the order in which they are started: the slowest first. files: descriptors of those that Http
    Servers read."""
    helpers = helper_environment()
    workers = [
        ChildSpec(
            f"http-{worker}",
            "lightllm.httpserver",
            ("--worker", str(worker), "--fd", str(listener_fd)),
            helpers,
            (listener_fd, *files),
        )
        for worker in range(config.httpserver_workers)
    ]
    return [
        *plan_backends(config),
        *(_plan_vision(config) if serves_images(config) else ()),
        *workers,
        ChildSpec("router", "lightllm.router", environment=helpers),
        ChildSpec("detokenizer", "lightllm.detokenizer", environment=helpers),
        ChildSpec("health", "lightllm.health", environment=helpers),
        ChildSpec("metrics", "lightllm.metrics", environment=helpers),
    ]


def _plan_vision(config: ServerConfig) -> list[ChildSpec]:
    """A Visual Server loads a model; the Cache Manager moves no data."""
    encoders = [
        ChildSpec(f"visual-{rank}", "lightllm.visual", ("--rank", str(rank)), visual_environment(config))
        for rank in range(config.visual_dp)
    ]
    return [*encoders, ChildSpec("cache", "lightllm.cache", environment=helper_environment())]

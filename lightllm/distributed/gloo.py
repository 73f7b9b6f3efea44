"""Collective operations of CPU ranks: gloo, over TCP between addresses that the ranks choose."""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist

from lightllm.distributed.collectives import PeerLost


class GlooCollectives:
    """Joins on construction: all ranks must construct theirs within `timeout` seconds.

    An operation that another rank does not take part in within `timeout` seconds raises `PeerLost`; so does, at once,
    one whose other rank has closed its end or died.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int, address: str, timeout: float) -> None:
        """store: of this generation alone; address: of this machine, where the other ranks reach this one."""
        gloo: Any = dist.ProcessGroupGloo  # torch declares few of its methods
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address)]
        options._timeout = datetime.timedelta(seconds=timeout)
        try:
            self._group = gloo(store, rank, world_size, options)
        except RuntimeError as error:
            raise PeerLost(f"the ranks cannot connect to each other: {_first_line(error)}") from error

    def all_reduce(self, x: torch.Tensor) -> None:
        self._finish(self._group.allreduce([x]))

    def all_gather(self, parts: list[torch.Tensor], x: torch.Tensor) -> None:
        self._finish(self._group.allgather([parts], [x]))

    def broadcast(self, x: torch.Tensor) -> None:
        self._finish(self._group.broadcast([x]))

    def close(self) -> None:
        self._group.abort()

    @staticmethod
    def _finish(work: dist.Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise PeerLost(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """gloo's message without the place in its source and its advice."""
    return str(error).partition("\n")[0].rpartition("] ")[2].partition(". This is")[0]

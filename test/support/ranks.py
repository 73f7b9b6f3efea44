"""Tensor parallel ranks as threads of the test process: each with its own group, connected by real gloo over loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightllm.distributed.rendezvous import Rendezvous
from lightllm.distributed.tp_group import TpGroup


def make_rendezvous(folder: Path, rank: int, world_size: int, **seconds: float) -> Rendezvous:
    timeouts = {"join_timeout": 20.0, "operation_timeout": 20.0, **seconds}
    return Rendezvous(rank=rank, world_size=world_size, file=str(folder / "ranks"), **timeouts)


def run_ranks(folder: Path, world_size: int, work: Callable[[TpGroup], Any], **seconds: float) -> list[Any]:
    """What `work(group)` returns, or the exception that it raises, on every rank. `seconds`: timeouts of the rendezvous."""
    results: list[Any] = [None] * world_size

    def run(rank: int) -> None:
        try:
            rendezvous = make_rendezvous(folder, rank, world_size, **seconds)
            group = TpGroup.join(rendezvous, torch.device("cpu"))
            try:
                results[rank] = work(group)
            finally:
                group.drop()
        except Exception as error:  # the test looks at it
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a rank hangs"
    return results

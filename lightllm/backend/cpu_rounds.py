"""How a CPU computes the rounds of a model that was loaded: with how many threads, and whether decode rounds are replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lightllm.backend.thread_share import ThreadShare
from lightllm.config import ServerConfig
from lightllm.ops.cpu.replay import replays

if TYPE_CHECKING:
    from lightllm.models.base import TpPartBaseModel

_ONE_THREAD_BYTES = 32 << 20
"""Weights below which one CPU thread is faster: a parallel region takes longer to start than to compute."""


def set_up(model: TpPartBaseModel, config: ServerConfig, world_size: int) -> ThreadShare | None:
    """Returns what watches over the number of threads, where there are several."""
    if model.device.type != "cpu":
        return None
    if not config.cpu_threads and model.weight_bytes < _ONE_THREAD_BYTES:
        torch.set_num_threads(1)
    if world_size == 1 and not config.disable_cudagraph:  # several ranks add up between the kernels
        model.replays = replays()
    threads = torch.get_num_threads()
    return ThreadShare(threads) if threads > 1 else None

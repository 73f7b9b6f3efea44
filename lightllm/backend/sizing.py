"""What rounds need beside weights and KV memory: on a GPU measured by running the largest round and the largest decode
batch, on a CPU computed from shapes. Those rounds, and the first ones that warm up, use the hold row and the hold slot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from lightllm.backend.device import Device
from lightllm.backend.kv_memory import GpuMemory, KvMemory, KvShape
from lightllm.models import mla
from lightllm.ops.batch import make_batch

if TYPE_CHECKING:
    from lightllm.models.base import TpPartBaseModel

_LOGIT_COPIES = 3
"""The logits of a round, and the sampler's two scratch buffers of their size."""
_WARM_UP_TOKENS = 16


def measure_gpu(
    device: Device,
    model: "TpPartBaseModel",
    shape: KvShape,
    tokens: int,
    rows: int,
    graph_rows: int,
    longest: int,
) -> GpuMemory:
    """tokens: of the largest round; rows: that may sample in one; graph_rows: of the largest decode graph, 0 without;
    longest: tokens of the longest context.

    Both run in a small KV memory of their own, which is given back. What stays used afterwards (libraries' and kernels' code,
    their workspaces) is not free.
    """
    device.release_cached()  # what loading the weights left behind
    before = device.memory()
    memory, logits = KvMemory(shape, 1, 1, longest, device.torch_device), min(tokens, rows)
    logits = tokens if model.pools else logits  # the mean is of every token's output
    round_peak, graph_peak = device.peak_during(partial(run_largest_round, model, memory, tokens, logits)), 0
    if graph_rows:
        graph_peak = device.peak_during(partial(decode_hold_rows, model, memory, graph_rows))
    del memory
    device.release_cached()
    after = device.memory()
    one_row = 0 if model.pools else model.config.vocab_size * 4
    return GpuMemory(
        total=before.total,
        free=min(before.free, after.free),
        activation_peak=round_peak + (_LOGIT_COPIES - 1) * logits * one_row,
        graph_bytes=graph_peak + graph_rows * one_row,
    )


def activation_bytes(model: "TpPartBaseModel", tokens: int, rows: int, longest: int) -> int:
    """What a round needs on a CPU, from shapes: one layer's activations, and the logits of every row, which the sampler
    may hold three times over. With latent attention also the keys and values of the contexts that are expanded together,
    and float32 copies of those of the longest one. Arguments as of `measure_gpu`."""
    config, latent = model.config, model.config.mla
    size = tokens * (12 * config.hidden_size + 4 * config.intermediate_size) * 4
    size += 0 if model.pools else _LOGIT_COPIES * min(tokens, rows) * config.vocab_size * 4
    if latent is not None:
        token = (2 * latent.nope + latent.rope + latent.value) * model.activation_dtype.itemsize
        copy = (latent.nope + latent.rope + latent.value) * 4
        size += config.num_heads * (max(mla.EXPANDED_TOKENS, longest) * token + longest * copy)
    return size


def warm_up(model: "TpPartBaseModel", memory: KvMemory, device: Device, largest_round: int) -> None:
    """First runs at start: lazy libraries, packed weights and thread pools are paid for before the first request. One prefill
    and one decode round; on a GPU before them the largest round, where memory can run out, and others of half as many tokens
    each, for kernels have another form for each range of sizes. No request's memory is touched."""
    length = min(_WARM_UP_TOKENS, memory.max_len)
    if device.measures:
        tokens = largest_round
        run_largest_round(model, memory, tokens)
        while (tokens := tokens // 2) > length:
            run_hold_rows(model, memory, tokens)
    run_hold_rows(model, memory, length)
    decode_hold_rows(model, memory, 1, length)


def run_largest_round(
    model: "TpPartBaseModel", memory: KvMemory, tokens: int, logits: int = 1
) -> torch.Tensor:
    """As `run_hold_rows`, with the contexts that take most memory: latent attention expands cached prefixes too."""
    if model.config.mla is None:
        return run_hold_rows(model, memory, tokens, logits)
    entries = max(mla.EXPANDED_TOKENS // memory.max_len, -(-tokens // memory.max_len))
    entries = min(entries, tokens)
    q_lens = [tokens // entries + (number < tokens % entries) for number in range(entries)]
    return _forward(model, memory, q_lens, [memory.max_len] * entries, 0, logits)


def run_hold_rows(model: "TpPartBaseModel", memory: KvMemory, tokens: int, logits: int = 1) -> torch.Tensor:
    """Prefills `tokens` tokens, in as many entries as they need, all in the hold row and the hold slot. Returns the
    logits [logits, V] of the last ones."""
    q_lens = [memory.max_len] * (tokens // memory.max_len)
    q_lens += [tokens % memory.max_len] if tokens % memory.max_len else []
    return _forward(model, memory, q_lens, q_lens, 0, logits)


def decode_hold_rows(model: "TpPartBaseModel", memory: KvMemory, count: int, kv_len: int = 1) -> torch.Tensor:
    """A decode round of `count` entries, all of them in the hold row. Returns logits [count, V]."""
    return _forward(model, memory, [1] * count, [kv_len] * count, count, count)


def _forward(
    model: "TpPartBaseModel",
    memory: KvMemory,
    q_lens: list[int],
    kv_lens: list[int],
    num_decode: int,
    logits: int,
) -> torch.Tensor:
    device, tokens = memory.req_to_token.device, sum(q_lens)
    batch = make_batch(
        torch.zeros(tokens, dtype=torch.int64, device=device), [memory.max_rows] * len(q_lens), q_lens, kv_lens,
        num_decode, memory.req_to_token, memory.kv, torch.arange(tokens - logits, tokens, device=device),
    )  # fmt: skip
    return model.forward(batch)

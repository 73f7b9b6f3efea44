"""Attention alone: decode over long contexts against bandwidth, prefill against torch's flash and cuDNN kernels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmark.gpu.clock import Limits, measure
from benchmark.gpu.figures import Figure
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightllm.models.base import TpPartBaseModel
from lightllm.models.registry import load_model
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.attention_spec import AttentionSpec
from lightllm.ops.batch import Batch, make_batch
from lightllm.ops.kv_layer import KvLayer

_ROTATED_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    size: int = 128

    def __str__(self) -> str:
        return f"{self.query} query and {self.kv} KV heads of {self.size}"


def decode(device: torch.device, limits: Limits, dry: bool) -> Iterator[Figure]:
    """K and V of 128 MB, 512 MB and 2 GB a layer."""
    heads = [Heads(8, 2, 32)] if dry else [Heads(32, 32), Heads(32, 8), Heads(64, 8)]
    sizes = [1 << 20] if dry else [128 << 20, 512 << 20, 2 << 30]
    for shape in heads:
        token_bytes = 2 * shape.kv * shape.size * (4 if dry else 2)
        for nbytes in sizes:
            for entries in [4] if dry else [1, 64]:
                context = nbytes // token_bytes // entries
                seconds = _decode_seconds(device, shape, entries, context, dry)
                moved = entries * context * token_bytes
                aim = 0.85 if nbytes >= 512 << 20 else 0.75
                yield Figure(
                    f"decode attention, {shape}, {entries} x {context} tokens, {nbytes >> 20} MiB",
                    moved / seconds / 1e9, "GB/s", limits.bandwidth / 1e9, "copy bandwidth", aim,
                )  # fmt: skip


def _decode_seconds(device: torch.device, heads: Heads, entries: int, context: int, dry: bool) -> float:
    case = _Case(device, heads, entries, context, dry)
    batch = case.batch([1] * entries, [context] * entries, entries)
    q = torch.randn(entries, heads.query, heads.size, device=device, dtype=case.dtype)
    # As layers do, each call reads another memory, a gibibyte in all: less would stay in the cache in part.
    copies = 1 if dry else max(_ROTATED_BYTES // case.kv.data.nbytes, 1)
    more = [KvLayer(torch.empty_like(case.kv.data).normal_(), heads.kv) for _ in range(copies - 1)]
    layers = [case.kv, *more]
    turn = itertools.cycle(layers)
    return measure(
        lambda: case.backends.attend(q, next(turn), batch.attention, case.spec), device, inner=1 if dry else max(copies, 4), graphed=True
    )  # fmt: skip


def prefill(device: torch.device, limits: Limits, dry: bool) -> Iterator[Figure]:
    """One prompt, causal, without a cached prefix, K and V read by slot and dense; beside it torch's kernels on dense ones."""
    for heads in [Heads(4, 4, 32)] if dry else [Heads(32, 32), Heads(32, 8)]:
        for length in [64] if dry else [2048, 8192]:
            case = _Case(device, heads, 1, length, dry)
            batch = case.batch([length], [length], 0)
            q = torch.randn(length, heads.query, heads.size, device=device, dtype=case.dtype)
            k, v = (
                torch.randn(length, heads.kv, heads.size, device=device, dtype=case.dtype) for _ in range(2)
            )
            operations = 4.0 * heads.query * heads.size * length * (length + 1) / 2
            rates = {
                how: operations / measure(
                    functools.partial(case.backends.attend, q, case.kv, batch.attention, case.spec, own),
                    device, inner=1 if dry else 10, graphed=True,
                )
                for how, own in {"by slot": None, "dense": (k, v)}.items()
            }  # fmt: skip
            what = f"prefill attention, {heads}, {length} tokens"
            for how, rate in rates.items():
                yield Figure(f"{what}, {how}", rate / 1e12, "TFLOP/s", limits.flops / 1e12, "matrix product")
            for name, backend, aim in (
                ("torch flash", SDPBackend.FLASH_ATTENTION, 1.0),
                ("cuDNN", SDPBackend.CUDNN_ATTENTION, 0.7),
            ):
                if not dry or backend is SDPBackend.FLASH_ATTENTION:
                    theirs = operations / _torch_seconds(device, heads, length, case.dtype, backend)
                    yield Figure(
                        f"{what}, dense, share of {name}", rates["dense"] / 1e12, "TFLOP/s", theirs / 1e12, name, aim
                    )  # fmt: skip


def _torch_seconds(
    device: torch.device, heads: Heads, length: int, dtype: torch.dtype, backend: SDPBackend
) -> float:
    """K and V repeated for every query head: the fastest form for kernels that know no groups."""
    q, k, v = (torch.randn(1, heads.query, length, heads.size, device=device, dtype=dtype) for _ in range(3))
    with sdpa_kernel(backend):
        inner = 1 if device.type == "cpu" else 10
        return measure(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), device, inner=inner)


class _Case:
    """KV memory of random values for `entries` requests, each with its own run of slots."""

    def __init__(self, device: torch.device, heads: Heads, entries: int, context: int, dry: bool) -> None:
        self.model = _one_layer(device, heads, dry)
        self.dtype = self.model.activation_dtype
        self.backends = make_attention_backends("triton", device)
        self.spec = AttentionSpec(heads.size**-0.5)
        self.device = device
        slots = entries * context
        data = torch.empty(slots + 1, 2 * heads.kv, heads.size, device=device, dtype=self.dtype)
        self.kv = KvLayer(data.normal_(), heads.kv)
        self.table = torch.arange(slots, dtype=torch.int32, device=device).view(entries, context)

    def batch(self, q_lens: list[int], kv_lens: list[int], num_decode: int) -> Batch:
        ids = torch.zeros(sum(q_lens), dtype=torch.int64, device=self.device)
        rows = list(range(len(q_lens)))
        batch = make_batch(ids, rows, q_lens, kv_lens, num_decode, self.table, [self.kv])
        self.model.prepare(batch)
        return batch


def _one_layer(device: torch.device, heads: Heads, dry: bool) -> TpPartBaseModel:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": heads.query,
        "num_key_value_heads": heads.kv, "head_dim": heads.size, "max_position_embeddings": 1 << 20,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        data_type = "fp32" if dry else "bf16"
        return load_model(folder, data_type=data_type, device=device, load_way="dummy")

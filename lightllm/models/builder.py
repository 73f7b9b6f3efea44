"""Makes a model's layers from its checkpoint, each rank its part: the one place that knows how weights are split."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.layers.embedding import LmHead, VocabEmbedding
from lightllm.layers.linear import ColumnLinear, RowLinear
from lightllm.layers.norm import LayerNorm, Norm, RMSNorm, WholeQKNorm
from lightllm.models.config import ModelConfig
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.linear import activation_dtype
from lightllm.ops.weight_rows import WeightRows
from lightllm.weights.freed_memory import give_back_freed_memory
from lightllm.weights.reader import WeightReader
from lightllm.weights.split import (
    Part,
    even_part,
    fused_qkv_parts,
    kv_head_part,
    merged,
    vocab_part,
    vocab_rows,
)

_Layer = TypeVar("_Layer")

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Builder:
    """Builds layers whose tensors are named `prefix` + name. Sizes are the whole model's."""

    reader: WeightReader
    config: ModelConfig
    """The whole model's shape."""
    dtype: torch.dtype
    device: torch.device
    group: TpGroup
    attention_backends: AttentionBackends
    """What the layers compute attention with."""
    prefix: str = ""
    max_len: int | None = None
    """The longest context that will be served; None: no more than the model was made for."""
    layers: list[Any] = dataclasses.field(default_factory=list)
    """Everything that was built, shared by all prefixes."""

    @property
    def activation_dtype(self) -> torch.dtype:
        return activation_dtype(self.device, self.dtype)

    def at(self, name: str) -> Builder:
        """The same for the tensors under `name`."""
        return dataclasses.replace(self, prefix=f"{self.prefix}{name}.")

    def in_parallel(self, makers: Sequence[Callable[[], _Layer]]) -> list[_Layer]:
        """Calls the makers in as many threads as torch computes with: packing a weight occupies only one."""
        threads = torch.get_num_threads()

        def make_one(make: Callable[[], _Layer]) -> _Layer:
            layer = make()
            give_back_freed_memory()
            return layer

        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                futures = [pool.submit(make_one, make) for make in makers]
                try:
                    return [future.result() for future in futures]
                finally:
                    for future in futures:
                        future.cancel()
        finally:
            torch.set_num_threads(threads)

    def qkv_linear(self, q: str, k: str, v: str) -> ColumnLinear:
        """Queries, keys and values of this rank's heads in one product."""
        config, (rank, world) = self.config, (self.group.rank, self.group.world_size)
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        kv_part = kv_head_part(config.num_kv_heads, config.head_dim, rank, world)
        rows = [
            (q, q_size, [even_part(q_size, 0, rank, world)]),
            (k, kv_size, [kv_part]),
            (v, kv_size, [kv_part]),
        ]
        return self._column(rows, config.hidden_size, config.qkv_bias)

    def fused_qkv_linear(self, name: str, layout: str) -> ColumnLinear:
        """The same from one tensor; layout: see `fused_qkv_parts`."""
        config = self.config
        parts = fused_qkv_parts(
            layout,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            self.group.rank,
            self.group.world_size,
        )
        size = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        return self._column([(name, size, parts)], config.hidden_size, config.qkv_bias)

    def o_linear(self, name: str) -> RowLinear:
        """From attention's heads to the hidden size."""
        config = self.config
        return self.row_linear(name, config.num_heads * config.head_dim, config.hidden_size, config.o_bias)

    def column_linear(
        self, names: Sequence[str], in_features: int, out_features: int, bias: bool
    ) -> ColumnLinear:
        """Layers of one shape side by side: output = [of names[0], of names[1], ...]."""
        part = even_part(out_features, 0, self.group.rank, self.group.world_size)
        return self._column([(name, out_features, [part]) for name in names], in_features, bias)

    def fused_column_linear(
        self, name: str, count: int, in_features: int, out_features: int, bias: bool
    ) -> ColumnLinear:
        """`count` layers of one shape from one tensor [count * out_features, in_features]."""
        part = even_part(out_features, 0, self.group.rank, self.group.world_size)
        parts = [Part(0, i * out_features + part.start, i * out_features + part.stop) for i in range(count)]
        return self._column([(name, count * out_features, merged(parts))], in_features, bias)

    def row_linear(
        self, name: str, in_features: int, out_features: int, bias: bool, reduce: bool = True
    ) -> RowLinear:
        """reduce: see `RowLinear`."""
        part = even_part(in_features, 1, self.group.rank, self.group.world_size)
        weight = self._rows(f"{name}.weight", (out_features, in_features), [part])
        offset = self._rows(f"{name}.bias", (out_features,)).load() if bias else None
        return self.keep(RowLinear(weight, offset, self.group, reduce))

    def norm(self, name: str) -> Norm:
        """Of the residual stream, in the kind that the config names."""
        config = self.config
        weight = self._rows(f"{name}.weight", (config.hidden_size,))
        if config.norm == "layer_norm":
            bias = self.vector(f"{name}.bias", (config.hidden_size,)) if config.norm_bias else None
            return self.keep(LayerNorm(weight.load(self.activation_dtype), bias, config.norm_eps))
        return self.keep(self._rms_norm(weight))

    def head_norm(self, names: Sequence[str], heads: Sequence[int]) -> Norm:
        """One norm over heads of several kinds: the first heads[0] heads use names[0], and so on."""
        parts = []
        for name, count in zip(names, heads):
            (weight,) = self.reader.read(f"{self.prefix}{name}.weight", (self.config.head_dim,))
            parts.append(weight.expand(count, -1))
        return self.keep(self._rms_norm(self._of(parts)))

    def each_head_norm(self, weight_of: Callable[[str, int], torch.Tensor]) -> Norm:
        """A LayerNorm without bias in which every query and key head has a weight of its own.

        weight_of("q" or "k", number of a head in the whole model) reads it: [head_dim].
        """
        config, rank, world = self.config, self.group.rank, self.group.world_size
        heads = {"q": (config.num_heads, even_part(config.num_heads, 0, rank, world)),
                 "k": (config.num_kv_heads, kv_head_part(config.num_kv_heads, 1, rank, world))}  # fmt: skip
        rows = []
        for kind, (count, part) in heads.items():
            # All are read, so that none is left over at the end: they are small.
            rows += [weight_of(kind, head) for head in range(count)][part.start : part.stop]
        return self.keep(LayerNorm(torch.stack(rows), None, config.norm_eps))

    def whole_qk_norm(self, q: str, k: str) -> WholeQKNorm:
        """An RMSNorm over all query heads at once and one over all key heads at once."""
        config, rank, world = self.config, self.group.rank, self.group.world_size
        q_size, k_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        dtype = self._norm_dtype
        q_weight = self._rows(f"{q}.weight", (q_size,), [even_part(q_size, 0, rank, world)]).load(dtype)
        k_part = kv_head_part(config.num_kv_heads, config.head_dim, rank, world)
        k_weight = self._rows(f"{k}.weight", (k_size,), [k_part]).load(dtype)
        copies = max(1, world // config.num_kv_heads)
        return self.keep(WholeQKNorm(q_weight, k_weight, config.norm_eps, copies, self.group))

    def interleaved_gate_up_linear(self, name: str, bias: bool) -> ColumnLinear:
        """Gate and up from one tensor whose rows take turns, the gate first; the output has the gate in the first half."""
        config = self.config
        size = config.intermediate_size
        part = even_part(2 * size, 0, self.group.rank, self.group.world_size)

        def sorted_rows(suffix: str, shape: Sequence[int]) -> WeightRows:
            (rows,) = self.reader.read(f"{self.prefix}{name}.{suffix}", shape, [part])
            return self._of((rows[0::2], rows[1::2]))

        weight = sorted_rows("weight", (2 * size, config.hidden_size))
        return self.keep(ColumnLinear(weight, sorted_rows("bias", (2 * size,)).load() if bias else None))

    def vector(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """A small tensor, whole, in the activation dtype."""
        return self._rows(name, shape).load(self.activation_dtype)

    def float32(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """A small tensor, whole, with all of its digits."""
        return WeightRows(
            self.reader.read(self.prefix + name, shape), torch.float32, self.device, self.reader.release_pages
        ).load()

    def share(self, names: Sequence[str], shape: Sequence[int], dim: int) -> WeightRows:
        """This rank's even share along `dim` of each of some tensors of one shape, one below the other."""
        part = even_part(shape[dim], dim, self.group.rank, self.group.world_size)
        return self._of([self._rows(name, shape, [part]).parts[0] for name in names])

    def whole_linear(self, name: str, in_features: int, out_features: int, bias: bool) -> ColumnLinear:
        """A small layer that every rank has whole."""
        weight = self._rows(f"{name}.weight", (out_features, in_features))
        offset = self._rows(f"{name}.bias", (out_features,)).load() if bias else None
        return self.keep(ColumnLinear(weight, offset))

    def embedding(self, name: str) -> VocabEmbedding:
        first = self._vocab_part().start
        return self.keep(VocabEmbedding(self._vocab(name).load(), first, self.activation_dtype, self.group))

    def embedding_and_head(self, embedding: str, head: str) -> tuple[VocabEmbedding, LmHead]:
        """Where they are tied the embedding keeps a plain copy: looking up rows of a packed one is not possible."""
        if self._is_tied(embedding, head):
            # A tied model's checkpoint may hold the one matrix under either name, or under both.
            only_head = self.reader.has(f"{self.prefix}{head}.weight") and not self.reader.has(
                f"{self.prefix}{embedding}.weight"
            )
            embed = self.embedding(head if only_head else embedding)
            self.reader.ignore(f"{self.prefix}{head}.weight")
            weight = self._of([embed.weight])
        else:
            embed = self.embedding(embedding)
            weight = self._vocab(head)
        return embed, self.keep(LmHead(weight, self.config.vocab_size, self.group))

    def _is_tied(self, embedding: str, head: str) -> bool:
        """As config.json says, unless the checkpoint holds a head of its own: then that is the head, as in transformers 5."""
        matrix, own = f"{self.prefix}{embedding}.weight", f"{self.prefix}{head}.weight"
        if not self.config.tie_word_embeddings or not (self.reader.has(matrix) and self.reader.has(own)):
            return self.config.tie_word_embeddings
        shape = (self.config.vocab_size, self.config.hidden_size)
        same = self.reader.holds_same(matrix, own, shape, self.dtype)
        if not same and self.group.rank == 0:
            logger.warning(
                "config.json ties the output head to the embedding (tie_word_embeddings, or this architecture's default), "
                "but %s differs from %s: the checkpoint's head is used", own, matrix,
            )  # fmt: skip
        return same

    def _rms_norm(self, weight: WeightRows) -> RMSNorm:
        if self.config.norm == "rms_norm_plus_one":
            # Kept in float32: 1 + w in bfloat16 would lose most of w's digits.
            return RMSNorm(1.0 + weight.load(torch.float32), self.config.norm_eps)
        return RMSNorm(weight.load(self._norm_dtype), self.config.norm_eps)

    @property
    def _norm_dtype(self) -> torch.dtype:
        """Of an RMSNorm's weight: what a float32 one gives is rounded once, after it is applied."""
        return torch.float32 if self.config.norm == "rms_norm_rounded_once" else self.activation_dtype

    def _vocab_part(self) -> Part:
        return vocab_part(self.config.vocab_size, self.group.rank, self.group.world_size)

    def _vocab(self, name: str) -> WeightRows:
        size, hidden = self.config.vocab_size, self.config.hidden_size
        rows = self._rows(f"{name}.weight", (size, hidden), [self._vocab_part()])
        padding = vocab_rows(size, self.group.world_size) - rows.shape[0]
        return self._of([*rows.parts, rows.parts[0].new_zeros(padding, hidden)]) if padding else rows

    def _column(
        self, rows: Sequence[tuple[str, int, Sequence[Part]]], in_features: int, bias: bool
    ) -> ColumnLinear:
        """rows: of each tensor its name, its number of rows and those of this rank, in the order of the output."""

        def below_each_other(suffix: str, *rest: int) -> WeightRows:
            read = [self._rows(f"{name}.{suffix}", (size, *rest), parts) for name, size, parts in rows]
            return self._of([part for tensor in read for part in tensor.parts])

        weight = below_each_other("weight", in_features)
        return self.keep(ColumnLinear(weight, below_each_other("bias").load() if bias else None))

    def _rows(self, name: str, shape: Sequence[int], parts: Sequence[Part] = ()) -> WeightRows:
        """The tensor, or some parts of it, below each other; still in the checkpoint."""
        return self._of(self.reader.read(self.prefix + name, shape, parts))

    def _of(self, parts: Sequence[torch.Tensor]) -> WeightRows:
        reader = self.reader
        return WeightRows(
            parts,
            self.dtype,
            self.device,
            reader.release_pages,
            reader.budget,
            budget_bytes=reader.budget.limit,
        )

    def keep(self, layer: _Layer) -> _Layer:
        """Counts a layer's bytes (`nbytes`) among the model's."""
        self.layers.append(layer)
        return layer

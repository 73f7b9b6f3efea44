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
from lightllm.layers.linear import RowLinear
from lightllm.layers.norm import LayerNorm, Norm, RMSNorm, WholeQKNorm
from lightllm.models.config import ModelConfig
from lightllm.models.pooled_head import CLASSIFIER, PooledHead
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.linear import PackedLinear, activation_dtype, pack_linear
from lightllm.ops.packed_experts import PackedExperts, StackedExperts
from lightllm.ops.weight_rows import WeightRows
from lightllm.quantization.formats import WeightFormat
from lightllm.quantization.linear_spec import LinearSpec, Matrix
from lightllm.weights.freed_memory import give_back_freed_memory
from lightllm.weights.reader import ModuleTensors
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
    """Builds layers of one module, whose tensors are `tensors`. Sizes are the whole model's."""

    tensors: ModuleTensors
    format: WeightFormat
    config: ModelConfig
    """The whole model's shape."""
    group: TpGroup
    attention_backends: AttentionBackends
    """What the layers compute attention with."""
    max_len: int | None = None
    """The longest context that will be served; None: no more than the model was made for."""
    pooled: PooledHead | None = None
    """What the model gives instead of logits; None: logits."""
    layers: list[Any] = dataclasses.field(default_factory=list)
    """Everything that was built, shared by all modules."""

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors.dtype

    @property
    def device(self) -> torch.device:
        return self.tensors.device

    @property
    def activation_dtype(self) -> torch.dtype:
        return activation_dtype(self.device, self.dtype)

    def at(self, name: str) -> Builder:
        """The same for the module `name` inside this one."""
        return dataclasses.replace(self, tensors=self.tensors.at(name))

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

    def linear(self, spec: LinearSpec) -> PackedLinear:
        return self.keep(self.format.linear(self.tensors, spec))

    def dense(self, spec: LinearSpec, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A matrix itself; see `WeightFormat.dense`."""
        return self.format.dense(self.tensors, spec, dtype)

    def experts(
        self, count: int, gate_up: Callable[[int], LinearSpec], down: Callable[[int], LinearSpec]
    ) -> PackedExperts | StackedExperts:
        return self.keep(self.format.experts(self.tensors, count, gate_up, down))

    def qkv_linear(self, q: str, k: str, v: str) -> PackedLinear:
        """Queries, keys and values of this rank's heads in one product."""
        config = self.config
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        kv_rows = (self._kv_part(config.head_dim),)
        matrices = (
            Matrix(q, q_size, (self.even_part(q_size),)),
            Matrix(k, kv_size, kv_rows),
            Matrix(v, kv_size, kv_rows),
        )
        return self.linear(LinearSpec(matrices, config.hidden_size, bias=config.qkv_bias))

    def fused_qkv_linear(self, name: str, layout: str) -> PackedLinear:
        """The same from one matrix; layout: see `fused_qkv_parts`."""
        config, group = self.config, self.group
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        rows = tuple(fused_qkv_parts(layout, heads, kv_heads, size, group.rank, group.world_size))
        matrix = Matrix(name, (heads + 2 * kv_heads) * size, rows)
        return self.linear(LinearSpec((matrix,), config.hidden_size, bias=config.qkv_bias))

    def o_linear(self, name: str) -> RowLinear:
        """From attention's heads to the hidden size."""
        config = self.config
        return self.row_linear(name, config.num_heads * config.head_dim, config.hidden_size, config.o_bias)

    def column_linear(
        self, names: Sequence[str], in_features: int, out_features: int, bias: bool, each: int = 1
    ) -> PackedLinear:
        """This rank's outputs of layers of one shape side by side: [of names[0], of names[1], ...]; each: how many such layers
        one below the other a name is."""
        return self.linear(self.column_spec(names, in_features, out_features, bias, each))

    def row_linear(
        self, name: str, in_features: int, out_features: int, bias: bool, reduce: bool = True
    ) -> RowLinear:
        """reduce: see `RowLinear`."""
        packed = self.linear(self.row_spec(name, in_features, out_features, bias))
        return RowLinear(packed, self.group, reduce)

    def whole_linear(self, name: str, in_features: int, out_features: int, bias: bool) -> PackedLinear:
        """A small layer that every rank has whole."""
        return self.linear(LinearSpec((Matrix(name, out_features),), in_features, bias=bias))

    def column_spec(
        self, names: Sequence[str], in_features: int, out_features: int, bias: bool = False, each: int = 1
    ) -> LinearSpec:
        """See `column_linear`."""
        part = self.even_part(out_features)
        starts = range(part.start, each * out_features, out_features)
        rows = tuple(merged([Part(0, start, start + part.stop - part.start) for start in starts]))
        matrices = tuple(Matrix(name, each * out_features, rows) for name in names)
        return LinearSpec(matrices, in_features, bias=bias)

    def row_spec(self, name: str, in_features: int, out_features: int, bias: bool = False) -> LinearSpec:
        """This rank's inputs of a layer; rank 0 alone adds its bias."""
        columns, adds_bias = self.even_part(in_features, 1), self.group.rank == 0
        return LinearSpec((Matrix(name, out_features),), in_features, columns, bias, adds_bias)

    def interleaved(self, name: str, width: int) -> Matrix:
        """Two matrices of `width` outputs each as one whose rows take turns: this rank's of the first, then of the second."""
        part = self.even_part(2 * width)
        return Matrix(name, 2 * width, (part._replace(step=2), part._replace(start=part.start + 1, step=2)))

    def even_part(self, size: int, dim: int = 0) -> Part:
        return even_part(size, dim, self.group.rank, self.group.world_size)

    def _kv_part(self, size: int) -> Part:
        """Of KV heads with `size` rows each."""
        return kv_head_part(self.config.num_kv_heads, size, self.group.rank, self.group.world_size)

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
            (weight,) = self.tensors.read(f"{name}.weight", (self.config.head_dim,))
            parts.append(weight.expand(count, -1))
        return self.keep(self._rms_norm(self.tensors.rows(parts)))

    def each_head_norm(self, weight_of: Callable[[str, int], torch.Tensor]) -> Norm:
        """A LayerNorm without bias in which every query and key head has a weight of its own.

        weight_of("q" or "k", number of a head in the whole model) reads it: [head_dim].
        """
        config = self.config
        heads = {"q": (config.num_heads, self.even_part(config.num_heads)),
                 "k": (config.num_kv_heads, self._kv_part(1))}  # fmt: skip
        rows = []
        for kind, (count, part) in heads.items():
            # All are read, so that none is left over at the end: they are small.
            rows += [weight_of(kind, head) for head in range(count)][part.start : part.stop]
        return self.keep(LayerNorm(torch.stack(rows), None, config.norm_eps))

    def whole_qk_norm(self, q: str, k: str) -> WholeQKNorm:
        """An RMSNorm over all query heads at once and one over all key heads at once."""
        config = self.config
        q_size, k_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        dtype = self._norm_dtype
        q_weight = self._rows(f"{q}.weight", (q_size,), [self.even_part(q_size)]).load(dtype)
        k_weight = self._rows(f"{k}.weight", (k_size,), [self._kv_part(config.head_dim)]).load(dtype)
        copies = max(1, self.group.world_size // config.num_kv_heads)
        return self.keep(WholeQKNorm(q_weight, k_weight, config.norm_eps, copies, self.group))

    def vector(self, name: str, shape: Sequence[int], parts: Sequence[Part] = ()) -> torch.Tensor:
        """A small tensor, whole or parts of it, in the activation dtype."""
        return self._rows(name, shape, parts).load(self.activation_dtype)

    def float32(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """A small tensor, whole, with all of its digits."""
        return self.tensors.rows(self.tensors.read(name, shape), torch.float32).load()

    def embedding(self, name: str) -> VocabEmbedding:
        weight = self.dense(self._vocab(name))
        return self.keep(VocabEmbedding(weight, self._vocab_part().start, self.activation_dtype, self.group))

    def embedding_and_head(self, embedding: str, head: str) -> tuple[VocabEmbedding, LmHead]:
        """Where they are tied the embedding keeps a plain copy: looking up rows of a packed one is not possible."""
        tensors = self.tensors
        if self._is_tied(embedding, head):
            # A tied model's checkpoint may hold the one matrix under either name, or under both.
            only_head = tensors.has(f"{head}.weight") and not tensors.has(f"{embedding}.weight")
            embed = self.embedding(head if only_head else embedding)
            tensors.reader.ignore(f"{tensors.prefix}{head}.weight")
            projection = self.keep(pack_linear(tensors.rows([embed.weight]), None))
        else:
            embed = self.embedding(embedding)
            projection = self.linear(self._vocab(head))
        return embed, LmHead(projection, self.config.vocab_size, self.group)

    def embedding_and_pooled_head(
        self, embedding: str, head: str, pooled: PooledHead
    ) -> tuple[VocabEmbedding, Callable[[torch.Tensor], torch.Tensor]]:
        """The token embedding, and what takes the output head's place: from [S, hidden] to float32 [S, size] on every rank."""
        if pooled.token_ids:
            embed, rows = self._embedding_and_head_rows(embedding, head, pooled.token_ids)
            return embed, lambda x: x.float() @ rows.float().T
        self.tensors.reader.ignore(f"{self.tensors.prefix}{head}.weight")
        if not pooled.labels:
            self.tensors.reader.ignore(f"{self.tensors.prefix}{CLASSIFIER}.weight")
            return self.embedding(embedding), lambda x: x.float()
        score = self.whole_linear(CLASSIFIER, self.config.hidden_size, pooled.labels, bias=False)
        return self.embedding(embedding), lambda x: score(x).float()

    def _embedding_and_head_rows(
        self, embedding: str, head: str, token_ids: Sequence[int]
    ) -> tuple[VocabEmbedding, torch.Tensor]:
        """rows: [tokens, hidden] of the output head."""
        tensors, size = self.tensors, self.config.vocab_size
        if not self._is_tied(embedding, head):
            rows = tuple(Part(0, token_id, token_id + 1) for token_id in token_ids)
            return self.embedding(embedding), self.dense(
                LinearSpec((Matrix(head, size, rows),), self.config.hidden_size)
            )
        only_head = tensors.has(f"{head}.weight") and not tensors.has(f"{embedding}.weight")
        embed = self.embedding(head if only_head else embedding)
        tensors.reader.ignore(f"{tensors.prefix}{head}.weight")
        return embed, embed(torch.tensor(token_ids, device=self.device))

    def _is_tied(self, embedding: str, head: str) -> bool:
        """As config.json says, unless the checkpoint holds a head of its own: then that is the head, as in transformers 5."""
        reader, prefix = self.tensors.reader, self.tensors.prefix
        matrix, own = f"{prefix}{embedding}.weight", f"{prefix}{head}.weight"
        if reader.has_under(f"{prefix}{head}.", besides=own):
            return False  # in few bits, which no embedding is kept in
        if not self.config.tie_word_embeddings or not (reader.has(matrix) and reader.has(own)):
            return self.config.tie_word_embeddings
        shape = (self.config.vocab_size, self.config.hidden_size)
        same = reader.holds_same(matrix, own, shape, self.dtype)
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

    def _vocab(self, name: str) -> LinearSpec:
        """Every rank has the same number of rows, the last ones may be padding."""
        size, part = self.config.vocab_size, self._vocab_part()
        padding = vocab_rows(size, self.group.world_size) - (part.stop - part.start)
        return LinearSpec((Matrix(name, size, (part,)),), self.config.hidden_size, padding=padding)

    def _rows(self, name: str, shape: Sequence[int], parts: Sequence[Part] = ()) -> WeightRows:
        """The tensor, or some parts of it, below each other; still in the checkpoint."""
        return self.tensors.rows(self.tensors.read(name, shape, parts))

    def ignore_under(self, prefix: str) -> None:
        """The checkpoint may hold tensors whose names begin so without need."""
        self.tensors.reader.ignore_under(self.tensors.prefix + prefix)

    def keep(self, layer: _Layer) -> _Layer:
        """Counts a layer's bytes (`nbytes`) among the model's."""
        self.layers.append(layer)
        return layer

"""Makes a model's layers from its checkpoint, each rank its part: the one place that knows how weights are split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.nn.functional as F

from lightllm.distributed.tp_group import TpGroup
from lightllm.layers.embedding import LmHead, VocabEmbedding
from lightllm.layers.linear import ColumnLinear, RowLinear
from lightllm.layers.norm import RMSNorm
from lightllm.models.config import ModelConfig
from lightllm.ops.linear import activation_dtype
from lightllm.weights.reader import WeightReader
from lightllm.weights.split import Part, even_part, kv_head_part, vocab_part, vocab_rows

_Layer = TypeVar("_Layer")


@dataclasses.dataclass(frozen=True)
class Builder:
    """Builds layers whose tensors are named `prefix` + name. Sizes are the whole model's."""

    reader: WeightReader
    config: ModelConfig
    """The whole model's shape."""
    dtype: torch.dtype
    device: torch.device
    group: TpGroup
    prefix: str = ""
    layers: list[ColumnLinear | RowLinear | RMSNorm | VocabEmbedding | LmHead] = dataclasses.field(
        default_factory=list
    )
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
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                futures = [pool.submit(make) for make in makers]
                try:
                    return [future.result() for future in futures]
                finally:
                    for future in futures:
                        future.cancel()
        finally:
            torch.set_num_threads(threads)

    def qkv_linear(self, q: str, k: str, v: str, bias: bool) -> ColumnLinear:
        """Queries, keys and values of this rank's heads in one product."""
        config, (rank, world) = self.config, (self.group.rank, self.group.world_size)
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        kv_part = kv_head_part(config.num_kv_heads, config.head_dim, rank, world)
        parts = [(q, q_size, even_part(q_size, 0, rank, world)), (k, kv_size, kv_part), (v, kv_size, kv_part)]
        return self._column(parts, config.hidden_size, bias)

    def column_linear(
        self, names: Sequence[str], in_features: int, out_features: int, bias: bool
    ) -> ColumnLinear:
        """Layers of one shape side by side: output = [of names[0], of names[1], ...]."""
        part = even_part(out_features, 0, self.group.rank, self.group.world_size)
        return self._column([(name, out_features, part) for name in names], in_features, bias)

    def row_linear(self, name: str, in_features: int, out_features: int, bias: bool) -> RowLinear:
        part = even_part(in_features, 1, self.group.rank, self.group.world_size)
        weight = self._to_device(self._read(f"{name}.weight", (out_features, in_features), part))
        offset = self._to_device(self._read(f"{name}.bias", (out_features,))) if bias else None
        return self._keep(RowLinear(weight, offset, self.group))

    def rms_norm(self, name: str, size: int) -> RMSNorm:
        weight = self._read(f"{name}.weight", (size,))
        return self._keep(RMSNorm(self._own(weight), self.config.rms_norm_eps))

    def head_norm(self, names: Sequence[str], heads: Sequence[int]) -> RMSNorm:
        """One norm over heads of several kinds: the first heads[0] heads use names[0], and so on."""
        rows = [
            self._read(f"{name}.weight", (self.config.head_dim,)).expand(count, -1)
            for name, count in zip(names, heads)
        ]
        return self._keep(RMSNorm(self._own(torch.cat(rows)), self.config.rms_norm_eps))

    def embedding_and_head(self, embedding: str, head: str) -> tuple[VocabEmbedding, LmHead]:
        """Where they are tied the embedding keeps a plain copy: looking up rows of a packed one is not possible."""
        weight = self._vocab(embedding)
        embed = VocabEmbedding(
            weight, self._vocab_part().start, activation_dtype(self.device, self.dtype), self.group
        )
        if self.config.tie_word_embeddings:
            self.reader.ignore(f"{self.prefix}{head}.weight")
        else:
            weight = self._vocab(head)
        return self._keep(embed), self._keep(LmHead(weight, self.config.vocab_size, self.group))

    def _vocab_part(self) -> Part:
        return vocab_part(self.config.vocab_size, self.group.rank, self.group.world_size)

    def _vocab(self, name: str) -> torch.Tensor:
        size = self.config.vocab_size
        weight = self._read(f"{name}.weight", (size, self.config.hidden_size), self._vocab_part())
        padding = vocab_rows(size, self.group.world_size) - weight.shape[0]
        if padding:
            weight = F.pad(weight, (0, 0, 0, padding))
        return weight.to(device=self.device, dtype=self.dtype, copy=True)

    def _column(self, parts: Sequence[tuple[str, int, Part]], in_features: int, bias: bool) -> ColumnLinear:
        rows = [self._read(f"{name}.weight", (size, in_features), part) for name, size, part in parts]
        weight = self._to_device(torch.cat(rows) if len(rows) > 1 else rows[0])
        offset = None
        if bias:
            offset = self._to_device(
                torch.cat([self._read(f"{name}.bias", (size,), part) for name, size, part in parts])
            )
        return self._keep(ColumnLinear(weight, offset))

    def _read(self, name: str, shape: Sequence[int], part: Part | None = None) -> torch.Tensor:
        whole = part is None or self.group.world_size == 1
        return self.reader.read(self.prefix + name, shape, None if whole else part)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)

    def _own(self, tensor: torch.Tensor) -> torch.Tensor:
        """In the activation dtype, rounded to the model's first, and no view of a file."""
        return self._to_device(tensor).to(self.activation_dtype, copy=True)

    def _keep(self, layer: _Layer) -> _Layer:
        self.layers.append(layer)  # type: ignore[arg-type]
        return layer

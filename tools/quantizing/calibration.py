"""Runs a model over texts, one layer at a time, and hands out what its linear layers are multiplied with.

Weights of one layer are in memory at a time, the hidden states of all texts beside them. A layer is computed twice: as it is, to see
its inputs, and with the weights that it gets in return, whose results the next layer sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from lightllm.backend.kv_memory import KvMemory, KvShape
from lightllm.distributed.tp_group import TpGroup
from lightllm.models.base import TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.batch import Batch, make_batch
from lightllm.ops.packed_experts import PackedExperts
from lightllm.quantization.dense import Dense, weight_and_bias
from lightllm.quantization.linear_spec import LinearSpec, Matrix
from lightllm.quantization.read_layout import rows_of
from lightllm.weights.reader import ModuleTensors, WeightReader

Exchange = Callable[[str, torch.Tensor], torch.Tensor | None]
"""From a module's name and XᵀX of its inputs, float32 [in, in], to its matrix [out, in] from now on; None: as it was."""


class Recorded:
    """A linear layer whose weight is read when it is first used, and may be dropped afterwards."""

    nbytes = 0

    def __init__(self, tensors: ModuleTensors, spec: LinearSpec) -> None:
        self._tensors, self.spec, self.prefix = tensors, spec, tensors.prefix
        self._weight: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None
        self.gram: torch.Tensor | None = torch.empty(0)
        """XᵀX of what it was called with so far; None: no longer of interest."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._weight is None:
            rows, bias = weight_and_bias(self._tensors, self.spec)
            self._weight, self._bias = rows.load(x.dtype), None if bias is None else bias.to(x.dtype)
        if self.gram is not None:
            values = x.float()
            own = values.T @ values
            self.gram = self.gram.add_(own) if len(self.gram) else own
        return torch.nn.functional.linear(x, self._weight, self._bias)

    def exchange(self, exchange: Exchange) -> None:
        gram, self.gram = self.gram, None
        assert gram is not None
        gram = gram if len(gram) else torch.zeros(self.spec.in_features, self.spec.in_features)
        parts = [self._new_rows(matrix, exchange, gram) for matrix in self.spec.matrices]
        if self._weight is not None and all(part is not None for part in parts):
            self._weight = torch.cat([part for part in parts if part is not None]).to(self._weight.dtype)

    def _new_rows(self, matrix: Matrix, exchange: Exchange, gram: torch.Tensor) -> torch.Tensor | None:
        new = exchange(self.prefix + matrix.name, gram.clone())
        return None if new is None else torch.cat([part.of(new) for part in rows_of(matrix)])

    def drop(self) -> None:
        self._weight = None


class _Recording(Dense):
    """The format of a model whose layers are `Recorded`."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self._wanted = wanted
        self.found: list[Recorded] = []

    def linear(self, tensors: ModuleTensors, spec: LinearSpec):  # type: ignore[no-untyped-def]
        if spec.stack is not None or not all(self._wanted(tensors.prefix + m.name) for m in spec.matrices):
            return super().linear(tensors, spec)
        self.found.append(Recorded(tensors, spec))
        return self.found[-1]

    def experts(self, tensors, count, gate_up, down):  # type: ignore[no-untyped-def]
        if gate_up(0).stack is not None:
            return super().experts(tensors, count, gate_up, down)
        return PackedExperts(
            (self.linear(tensors, gate_up(i)), self.linear(tensors, down(i))) for i in range(count)
        )


@torch.inference_mode()
def walk(
    model_class: type[TpPartBaseModel],
    config: ModelConfig,
    reader: WeightReader,
    dtype: torch.dtype,
    wanted: Callable[[str], bool],
    texts: Sequence[Sequence[int]],
    exchange: Exchange,
) -> Iterator[int]:
    """Yields the number of each layer when all of its modules have been exchanged. wanted: modules that are; texts: token ids."""
    device = torch.device("cpu")
    format, backends = _Recording(wanted), make_attention_backends("triton", device)
    tensors = ModuleTensors(reader, dtype, device)
    model = model_class(config, Builder(tensors, format, config, TpGroup(), backends))
    batches = [
        _batch(model, ids, memory.kv, memory.req_to_token)
        for memory in [_memory(model, texts)]
        for ids in texts
    ]
    states: list[tuple[torch.Tensor | None, torch.Tensor]] = []
    for batch in batches:
        model.prepare(batch)
        states.append((None, model.embed(batch)))
    for index, layer in enumerate(model.layers):
        own = [one for one in format.found if one.prefix.startswith(f"{model.names.layers}.{index}.")]
        for batch, (x, residual) in zip(batches, states):
            layer.forward(None if x is None else x.clone(), residual.clone(), batch)
        for one in own:
            one.exchange(exchange)
        yield index
        states = [
            (layer.forward(x, residual, batch), residual) for batch, (x, residual) in zip(batches, states)
        ]
        for one in own:
            one.drop()


def _memory(model: TpPartBaseModel, texts: Sequence[Sequence[int]]) -> KvMemory:
    """Of one layer, which all of them use in turn."""
    config, longest = model.config, max(map(len, texts))
    shape = KvShape(1, config.num_kv_heads, config.head_dim, model.kv_dtype, config.latent_dim)
    memory = KvMemory(shape, longest, 1, longest, model.device)
    memory.kv *= config.num_layers
    memory.req_to_token[0] = torch.arange(longest)
    return memory


def _batch(model: TpPartBaseModel, ids: Sequence[int], kv: list, req_to_token: torch.Tensor) -> Batch:  # type: ignore[type-arg]
    return make_batch(torch.tensor(ids), [0], [len(ids)], [len(ids)], 0, req_to_token, kv)

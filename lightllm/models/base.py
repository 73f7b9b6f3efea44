"""`TpPartBaseModel`: one tensor-parallel rank's part of a decoder-only model. Used by the backend through `forward`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch

from lightllm.layers.embedding import VocabEmbedding
from lightllm.layers.rotary import RotaryTable
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.models.decoder_layers import PreNormLayer
from lightllm.models.replayed_layers import replayed
from lightllm.ops.batch import Batch
from lightllm.ops.cpu.replay import Replays


class DecoderLayer(Protocol):
    """One layer of a model: what the loop of `TpPartBaseModel.forward` calls."""

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, batch: Batch) -> torch.Tensor | None:
        """residual: [T, hidden], the residual stream, added to in place; x: [T, hidden], what is still to be added to
        it (None: nothing, as before the first layer). Returns what the next layer is to add: so that it can do it together
        with its norm; None: nothing."""


@dataclasses.dataclass(frozen=True)
class Names:
    """What the checkpoint calls the parts that every model has."""

    embedding: str = "model.embed_tokens"
    layers: str = "model.layers"
    norm: str = "model.norm"
    head: str = "lm_head"


class TpPartBaseModel:
    """Owns loading and the loop over layers. An architecture says in `make_layer` what its layers are.

    Attributes: `config` this rank's shape; `dtype` of the checkpoint or --data_type; `activation_dtype` what is
    computed in; `kv_dtype` what KV memory must be made of; `device`; `weight_bytes` in memory after packing.
    """

    names = Names()
    optional_prefix = ""
    """What stands before the names of all tensors in some checkpoints, and is missing in others."""
    weight_format = ""
    """Of weights in few bits, for people; set by who loads the model."""
    scores = False
    """A reward model: its own head makes vectors of size 1."""

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        """config: this rank's shape; build: reads the weights."""
        self.config = config
        self.dtype = build.dtype
        self.activation_dtype = build.activation_dtype
        self.kv_dtype = build.activation_dtype
        self.device = build.device
        names = self.names
        self.pools = self.scores or build.pooled is not None
        """`forward` returns vectors float32 [S, size] instead of logits: see `PooledHead`."""
        self.embed_tokens, self.lm_head = self.make_ends(build)
        self.layers: list[DecoderLayer] = build.in_parallel(
            [
                lambda index=index: self.make_layer(config, build.at(f"{names.layers}.{index}"), index)  # type: ignore[misc]
                for index in range(config.num_layers)
            ]
        )
        self.norm = build.norm(names.norm)
        self.rotary = [
            RotaryTable(
                rope.dim,
                rope.theta,
                rope.scaling,
                self.activation_dtype,
                build.device,
                build.max_len,
                rope.axes,
            )
            for rope in config.ropes
        ]
        self.weight_bytes = sum(layer.nbytes for layer in build.layers)
        self.replays: Replays | None = None
        """Of decode rounds, where the backend wants them."""

    def make_ends(self, build: Builder) -> tuple[VocabEmbedding, Callable[[torch.Tensor], torch.Tensor]]:
        """The token embedding, and the output head from [S, hidden] to [S, vocab_size]: see `LmHead`."""
        names = self.names
        if build.pooled is not None:
            embed, head = build.embedding_and_pooled_head(names.embedding, names.head, build.pooled)
            return embed, (lambda x: self.scaled(head(x))) if build.pooled.token_ids else head
        return build.embedding_and_head(names.embedding, names.head)

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        """The layer number `index`, whose tensors `build` reads; called from several threads."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Computes all tokens of the batch, writes their keys and values into `batch.kv`.

        Returns [S, vocab_size]: logits of the positions in `batch.logit_index`, float32 on a GPU, float32 or what the head
        computes in on a CPU. KV memory is of `kv_dtype`.
        """
        self.prepare(batch)
        residual = self.embed(batch)
        if self.replays is not None and batch.only_decodes:
            x = replayed(self.replays, self._hidden, residual, batch)
        else:
            x = self._hidden(residual, batch)
        return self.lm_head(x) if self.pools else self.logits(x)

    def _hidden(self, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        """From the embedding to what the head reads, [S, hidden]."""
        x: torch.Tensor | None = None
        wanted, logit_index, last = batch.wanted, batch.logit_index, len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if (
                index == last
                and wanted is not None
                and batch.embeds is None
                and isinstance(layer, PreNormLayer)
            ):
                x, residual = layer.forward_wanted(x, residual, batch, wanted)
                logit_index = wanted.logit_index
                break
            x = layer.forward(x, residual, batch)
            if batch.embeds is not None:
                batch.embeds.add_behind(index, residual)
        if logit_index is not None:
            x = None if x is None else x.index_select(0, logit_index)
            residual = residual.index_select(0, logit_index)
        return self.norm.add(x, residual)

    def prepare(self, batch: Batch) -> None:
        """Works out once what all layers need: what attention reads, and the rotary angles."""
        batch.attention = batch.attention.anew()
        batch.rotary = [
            table.lookup(batch.rope_positions, batch.attention.max_kv_len) for table in self.rotary
        ]

    def embed(self, batch: Batch) -> torch.Tensor:
        """The residual stream before the first layer: a new tensor [T, hidden]."""
        x = self.embed_tokens(batch.input_ids)
        if self.config.embedding_scale != 1:
            x.mul_(self.config.embedding_scale)
        if batch.embeds is not None:
            x.index_copy_(0, batch.embeds.where, batch.embeds.what[:, : x.shape[1]].to(x.dtype))
        return x

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """x: [S, hidden], normalised. Returns [S, vocab_size] as `forward`."""
        return self.scaled(self.lm_head(x))

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [S, any] as the config wants them."""
        config = self.config
        if config.logits_scale != 1:
            logits = logits.float() * config.logits_scale
        if config.logits_softcap:
            logits = logits.float().div_(config.logits_softcap).tanh_().mul_(config.logits_softcap)
        return logits

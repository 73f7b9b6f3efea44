"""`TpPartBaseModel`: one tensor-parallel rank's part of a decoder-only model. Used by the backend through `forward`."""

from __future__ import annotations

from typing import Protocol

import torch

from lightllm.layers.norm import RMSNorm
from lightllm.layers.rotary import RotaryTable
from lightllm.models.batch import Batch
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig
from lightllm.ops.attention_plan import plan_attention


class DecoderLayer(Protocol):
    """One layer of a model: what the loop of `TpPartBaseModel.forward` calls."""

    input_layernorm: RMSNorm

    def forward(self, x: torch.Tensor, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        """x: [T, hidden], the layer's normalised input; residual: [T, hidden], to which the layer adds in place all
        but its last product, which it returns."""


class TpPartBaseModel:
    """Owns loading and the loop over layers. An architecture says in `make_layer` what its layers are.

    Attributes: `config` this rank's shape; `dtype` of the checkpoint or --data_type; `activation_dtype` what is
    computed in; `kv_dtype` what KV memory must be made of; `device`; `weight_bytes` in memory after packing.
    """

    def __init__(self, config: ModelConfig, build: Builder) -> None:
        """config: this rank's shape; build: reads the weights."""
        self.config = config
        self.dtype = build.dtype
        self.activation_dtype = build.activation_dtype
        self.kv_dtype = build.activation_dtype
        self.device = build.device
        self.embed_tokens, self.lm_head = build.embedding_and_head("model.embed_tokens", "lm_head")
        self.layers: list[DecoderLayer] = build.in_parallel(
            [
                lambda index=index: self.make_layer(config, build.at(f"model.layers.{index}"), index)  # type: ignore[misc]
                for index in range(config.num_layers)
            ]
        )
        self.norm = build.rms_norm("model.norm", config.hidden_size)
        self.rotary = RotaryTable(
            config.head_dim, config.rope_theta, config.rope_scaling, self.activation_dtype, build.device
        )
        self.weight_bytes = sum(layer.nbytes for layer in build.layers)

    def make_layer(self, config: ModelConfig, build: Builder, index: int) -> DecoderLayer:
        """The layer number `index`; called from several threads."""
        raise NotImplementedError

    @torch.inference_mode()
    def forward(self, batch: Batch) -> torch.Tensor:
        """Computes all tokens of the batch, writes their keys and values into `batch.kv`.

        Returns float32 [S, vocab_size]: logits of the positions in `batch.logit_index`. KV memory is of `kv_dtype`.
        """
        self.prepare(batch)
        residual = self.embed_tokens(batch.input_ids)
        x = self.layers[0].input_layernorm(residual)
        for index, layer in enumerate(self.layers):
            if index:
                x = layer.input_layernorm.add(x, residual)
            x = layer.forward(x, residual, batch)
        residual.add_(x)
        if batch.logit_index is not None:
            residual = residual.index_select(0, batch.logit_index)
        return self.lm_head(self.norm(residual))

    def prepare(self, batch: Batch) -> None:
        """Works out once what all layers need: where contexts lie, and the rotary angles."""
        batch.plan = plan_attention(
            batch.rows.tolist(),
            batch.q_start.diff().tolist(),
            batch.kv_len.tolist(),
            batch.num_decode,
            batch.req_to_token,
            self.activation_dtype,
            batch.kv[0].stride(0) * batch.kv[0].element_size(),
        )
        batch.rotary = self.rotary.lookup(batch.positions, batch.max_kv_len)

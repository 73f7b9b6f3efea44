"""The ways in which attention and MLP hang on the residual stream h, once for all architectures that share them."""

from __future__ import annotations

from typing import Protocol

import torch

from lightllm.layers.norm import Norm
from lightllm.models.few_rows import FewRows
from lightllm.ops.batch import Batch, Wanted
from lightllm.ops.skinny_linear import takes


class SelfAttention(Protocol):
    def forward(self, x: torch.Tensor, batch: Batch, wanted: Wanted | None = None) -> torch.Tensor:
        """x: [T, hidden]. Returns a new tensor of the same shape; with `wanted` [K, hidden], of these tokens."""


class FeedForward(Protocol):
    """An MLP, or a mixture of experts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden]. Returns a new tensor of the same shape."""


class PreNormLayer:
    """h += scale * attention(norm(h)); h += scale * mlp(norm(h)): Llama's order, and most models'."""

    def __init__(
        self,
        input_layernorm: Norm,
        self_attn: SelfAttention,
        post_attention_layernorm: Norm,
        mlp: FeedForward,
        residual_scale: float = 1.0,
    ) -> None:
        self.input_layernorm, self.self_attn = input_layernorm, self_attn
        self.post_attention_layernorm, self.mlp = post_attention_layernorm, mlp
        self.residual_scale = residual_scale
        parts = (input_layernorm, self_attn, post_attention_layernorm, mlp)
        self._few_rows = FewRows.of(*parts) if residual_scale == 1 else None

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, batch: Batch) -> torch.Tensor | None:
        if self._few_rows is not None and takes(residual):
            if x is not None:
                residual.add_(x)
            self._few_rows.forward(residual, batch)
            return None
        x = self.input_layernorm.add(x, residual)
        x = self._scaled(self.self_attn.forward(x, batch))
        x = self.post_attention_layernorm.add(x, residual)
        return self._scaled(self.mlp.forward(x))

    def forward_wanted(
        self, x: torch.Tensor | None, residual: torch.Tensor, batch: Batch, wanted: Wanted
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`forward` as the last layer: what it returns and the residual stream, each [K, hidden] of the wanted tokens."""
        x = self.input_layernorm.add(x, residual)
        x = self.self_attn.forward(x, batch, wanted)
        residual = residual.index_select(0, wanted.tokens)
        if not len(x):
            return x, residual
        x = self.post_attention_layernorm.add(self._scaled(x), residual)
        return self._scaled(self.mlp.forward(x)), residual

    def _scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.residual_scale == 1 else x.mul_(self.residual_scale)


class ParallelLayer:
    """h += attention(norm(h)) + mlp(norm(h)), the same norm for both."""

    def __init__(self, input_layernorm: Norm, self_attn: SelfAttention, mlp: FeedForward) -> None:
        self.input_layernorm, self.self_attn, self.mlp = input_layernorm, self_attn, mlp

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = self.input_layernorm.add(x, residual)
        return self.self_attn.forward(x, batch).add_(self.mlp.forward(x))


class SandwichLayer:
    """h += norm(attention(norm(h))); h += norm(mlp(norm(h)))"""

    def __init__(
        self,
        pre_attention: Norm,
        self_attn: SelfAttention,
        post_attention: Norm,
        pre_mlp: Norm,
        mlp: FeedForward,
        post_mlp: Norm,
    ) -> None:
        self.pre_attention, self.self_attn, self.post_attention = pre_attention, self_attn, post_attention
        self.pre_mlp, self.mlp, self.post_mlp = pre_mlp, mlp, post_mlp

    def forward(self, x: torch.Tensor | None, residual: torch.Tensor, batch: Batch) -> torch.Tensor:
        x = self.pre_attention.add(x, residual)
        x = self.post_attention(self.self_attn.forward(x, batch))
        x = self.pre_mlp.add(x, residual)
        return self.post_mlp(self.mlp.forward(x))

"""The shape of mixtures of experts and of latent attention, read from a config.json. Loads no torch."""

from __future__ import annotations

import dataclasses

from lightllm.errors import InvalidModel
from lightllm.ops.moe_routing_spec import MoeRoutingSpec


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """Widths are this rank's after `ModelConfig.for_rank`."""

    routing: MoeRoutingSpec
    width: int
    """Of each expert's MLP."""
    layers: tuple[bool, ...]
    """Which layers have experts; the others have one MLP."""
    shared_width: int = 0
    """Of the MLP that computes every token beside the experts; 0: there is none."""

    def __post_init__(self) -> None:
        spec = self.routing
        if spec.top_k > spec.num_experts:
            raise InvalidModel(
                f"config.json: {spec.top_k} of {spec.num_experts} experts would compute each token."
            )
        if spec.num_experts % spec.groups or spec.top_groups > spec.groups:
            raise InvalidModel(
                f"config.json: {spec.top_groups} of {spec.groups} groups of {spec.num_experts} experts cannot be chosen."
            )
        if spec.top_groups * (spec.num_experts // spec.groups) < spec.top_k:
            raise InvalidModel(
                f"config.json: {spec.top_groups} groups of experts hold fewer than {spec.top_k} experts."
            )

    def for_rank(self, world_size: int) -> MoeConfig:
        """The part of one of `world_size` ranks: a share of each expert's width."""
        for what, width in (("expert", self.width), ("shared expert", self.shared_width)):
            if width % world_size:
                raise InvalidModel(f"The {what} width {width} cannot be split over {world_size} ranks.",
                                   "Choose another --tp.")  # fmt: skip
        return dataclasses.replace(
            self, width=self.width // world_size, shared_width=self.shared_width // world_size
        )


@dataclasses.dataclass(frozen=True)
class MlaConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1). All sizes are of one token or head."""

    latent: int
    """`kv_lora_rank`: the vector that keys and values of all heads are made of."""
    rope: int
    """`qk_rope_head_dim`: the rotated part of queries and of the one key that all heads share."""
    nope: int
    """`qk_nope_head_dim`: the rest of queries and keys."""
    value: int
    """`v_head_dim`"""
    query_latent: int
    """`q_lora_rank`: the vector that queries are made of; 0: they are made of x."""


@dataclasses.dataclass(frozen=True)
class ClampedSwiglu:
    """Of gpt-oss's experts: see `clamped_swiglu`."""

    limit: float
    alpha: float

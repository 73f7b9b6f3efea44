"""What RMSNorm and LayerNorm share: how rows are launched, one program a row."""

from __future__ import annotations

from typing import Any

import torch

from lightllm.ops.triton.launch import launch, launch_config, next_power_of_2, pdl_options


def with_heads(x: torch.Tensor) -> torch.Tensor:
    """[..., size] as [T, heads, size]."""
    return x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])


def launch_rows(
    kernel: Any,
    config: str,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    **own: Any,
) -> None:
    """x, out: [T, heads, size]; weight: [size] or [heads, size]; config: the kernel's name in the configuration files;
    own: what else this kernel takes."""
    tokens, heads, size = x.shape
    if tokens == 0:
        return
    assert x.stride(2) == 1 and weight.stride(-1) == 1
    launch(
        kernel, (tokens * heads,),
        x_ptr=x, residual_ptr=residual, weight_ptr=weight, out_ptr=out,
        x_stride=x.stride(0), residual_stride=0 if residual is None else residual.stride(0), out_stride=out.stride(0),
        x_head_stride=x.stride(1), out_head_stride=out.stride(1),
        weight_head_stride=weight.stride(0) if weight.dim() == 2 else 0,
        heads=heads, size=size, eps=eps,
        ADD=residual is not None, BLOCK=next_power_of_2(size), **own,
        **launch_config(config, x.device, size=size), **pdl_options(x.device),
    )  # fmt: skip

"""Which backends a model computes attention with: `--attention_backend`, separately for prefill and for decode.

FlashInfer and FlashAttention-3 are optional packages, which see KV memory as pages of one token. What they do not know
(ALiBi, sinks, block sparsity) Triton computes. A CPU decodes with the kernels of `ops/cpu/`; prefill, block sparsity, and
everything where there are no such kernels, torch computes.
"""

from __future__ import annotations

import torch

from lightllm.errors import InvalidOption
from lightllm.ops.attention_backends.cpu import CpuAttention
from lightllm.ops.attention_backends.protocol import AttentionBackend, AttentionBackends
from lightllm.ops.attention_backends.torch import TorchAttention
from lightllm.ops.cpu.library import load_kernels

_NAMES = ("triton", "flashinfer", "fa3")


def make_attention_backends(names: str, device: torch.device, graphs: bool = False) -> AttentionBackends:
    """names: one for both, or "prefill,decode"; graphs: decode rounds will be captured.

    Raises `InvalidOption` for a backend that is not known, not installed, or cannot work here.
    """
    chosen = [name.strip() for name in names.split(",")]
    if not 1 <= len(chosen) <= 2 or not set(chosen) <= set(_NAMES):
        raise InvalidOption(
            f"--attention_backend {names}: one of {', '.join(_NAMES)}, or two, for prefill and for decode.",
            "For example: --attention_backend fa3,triton",
        )
    if device.type == "cpu":
        if chosen != ["triton"] * len(chosen):
            raise InvalidOption(f"--attention_backend {names} needs a GPU.", "Leave it out.")
        torch_attention = TorchAttention()
        kernels = load_kernels()
        own = CpuAttention(kernels) if kernels else torch_attention
        return AttentionBackends(own, own, torch_attention)
    made = {name: _make(name, device) for name in dict.fromkeys([*chosen, "triton"])}
    if graphs and not made[chosen[-1]].graphs:
        raise InvalidOption(
            f"--attention_backend {names}: decoding with {chosen[-1]} cannot be captured.",
            "Add --disable_cudagraph, or decode with another: --attention_backend flashinfer,triton",
        )
    return AttentionBackends(made[chosen[0]], made[chosen[-1]], made["triton"])


def _make(name: str, device: torch.device) -> AttentionBackend:
    """Imports the one module that has it."""
    if name == "fa3":
        from lightllm.ops.attention_backends.fa3 import Fa3Attention

        return Fa3Attention(device)
    if name == "flashinfer":
        from lightllm.ops.attention_backends.flashinfer import FlashInferAttention

        return FlashInferAttention(device)
    from lightllm.ops.attention_backends.triton import TritonAttention

    return TritonAttention()

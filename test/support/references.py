"""The plainest possible implementations of operations, in float64: what every implementation is compared with."""

import math

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    normalized = centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight.double()
    return normalized if bias is None else normalized + bias.double()


def gated(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    """activation: "silu", "clamped" (a SwiGLU with limit 7, alpha 1.702), "tanh" or "none", as gelu's `approximate`."""
    gate, up = gate_up.double().chunk(2, dim=-1)
    if activation == "clamped":
        gate = gate.clamp(max=7.0)
        return gate / (1 + (-1.702 * gate).exp()) * (1 + up.clamp(-7.0, 7.0))
    if activation == "silu":
        return gate / (1 + (-gate).exp()) * up
    cdf = (1 + torch.erf(gate / 2**0.5)) / 2
    if activation == "tanh":
        cdf = (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) / 2
    return gate * cdf * up


def rotated_as_complex(
    x: torch.Tensor,
    positions: torch.Tensor,
    theta: float,
    rotary_dim: int | None = None,
    interleaved: bool = False,
) -> torch.Tensor:
    """Element i and i + rotary_dim / 2 (interleaved: 2i and 2i + 1) are real and imaginary part of one number."""
    rotary_dim = rotary_dim or x.shape[-1]
    half = rotary_dim // 2
    parts = x[..., :rotary_dim].double().unflatten(-1, (half, 2) if interleaved else (2, half))
    real, imaginary = parts.unbind(-1 if interleaved else -2)
    exponents = torch.arange(half, dtype=torch.float64, device=x.device) / half
    angles = positions[:, None, None] * theta ** (-exponents)
    numbers = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angles), angles)
    rotated = torch.stack((numbers.real, numbers.imag), dim=-1 if interleaved else -2).flatten(-2)
    return torch.cat((rotated, x[..., rotary_dim:].double()), dim=-1)


def sample_filtered(
    logits: list[float], uniform: float, top_k: int, top_p: float, min_p: float
) -> tuple[int, float]:
    """One row, in Python floats: sort by (-logit, id), cut, walk. The token and its log-probability."""
    normalizer = math.log(sum(math.exp(x) for x in logits))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    mass = [math.exp(logits[i] - normalizer) for i in order]
    kept, before = [], 0.0
    for rank, p in enumerate(mass):
        if rank > 0 and (rank >= top_k or before >= top_p or p < min_p * mass[0]):
            break
        kept.append(p)
        before += p
    target, total, chosen = uniform * sum(kept), 0.0, 0
    while chosen < len(kept) - 1 and total + kept[chosen] <= target:
        total += kept[chosen]
        chosen += 1
    return order[chosen], logits[order[chosen]] - normalizer

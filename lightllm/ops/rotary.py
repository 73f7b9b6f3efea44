"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): its frequencies, its tables, and the rotation, alone or with
the write into KV slots."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lightllm.ops.cpu import rotary as cpu_impl
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.rms_norm import rms_norm
from lightllm.ops.write_kv import write_kv


def inverse_frequencies(
    dim: int, theta: float, scaling: Mapping[str, Any], length: int | None = None
) -> tuple[torch.Tensor, float]:
    """float32 [dim / 2]: radians per position of each pair; and what cosines and sines are multiplied with.

    dim: rotated elements of a head. `scaling["rope_type"]`, whose fields the caller has checked:

    - "default";
    - "linear": positions divided by `factor` (Chen et al. 2023, arXiv 2306.15595);
    - "dynamic": theta grown for `length` by NTK-aware scaling; "qwen_dynamic": the same in powers of two (Qwen 1);
    - "llama3": long wavelengths divided by `factor`, short ones kept, a linear blend between (Llama 3.1);
    - "yarn": Peng et al. 2023, arXiv 2309.00071, with DeepSeek's `mscale` and `mscale_all_dim`;
    - "longrope": Ding et al. 2024, arXiv 2402.13753: a factor for each pair, `long_factor` if `length` exceeds the
      original context, else `short_factor`; Phi-3-small and Phi-3.5-MoE also say `long_mscale` and `short_mscale`.

    length: the longest context that will be served (None: the original one). The types that depend on the length take
    it from here and not from the request at hand: keys that were rotated once stay valid when a context grows, and when
    another request shares them.
    """
    kind = scaling["rope_type"]
    attention_factor = 1.0
    if kind in ("dynamic", "qwen_dynamic"):
        theta *= _ntk_ratio(kind, scaling, length) ** (dim / (dim - 2))
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim
    frequencies = 1.0 / (theta**exponents)
    if kind == "linear":
        frequencies = frequencies / float(scaling["factor"])
    elif kind == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif kind == "yarn":
        frequencies, attention_factor = _yarn(frequencies, dim, theta, scaling)
    elif kind == "longrope":
        original = float(scaling["original_max_position_embeddings"])
        which = "long" if length is not None and length > original else "short"
        factors = torch.tensor(scaling[f"{which}_factor"], dtype=torch.float32)
        frequencies = 1.0 / (factors * theta**exponents)
        attention_factor = scaling.get(f"{which}_mscale") or _longrope_attention_factor(scaling)
    return frequencies, attention_factor


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """By how much attention's temperature grows with the context (YaRN, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _ntk_ratio(kind: str, scaling: Mapping[str, Any], length: int | None) -> float:
    original = float(scaling["original_max_position_embeddings"])
    stretch = max(length or original, original) / original
    if kind == "qwen_dynamic":
        return max(2.0 ** (math.ceil(math.log2(stretch)) + 1) - 1, 1.0) if stretch > 1 else 1.0
    factor = float(scaling["factor"])
    return factor * stretch - (factor - 1)


def _yarn(
    frequencies: torch.Tensor, dim: int, theta: float, scaling: Mapping[str, Any]
) -> tuple[torch.Tensor, float]:
    """Pairs that turn often within the original context keep their frequency, those that turn less than once do not."""
    factor, context = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])

    def pair_that_turns(times: float) -> float:
        return dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(scaling.get("beta_fast") or 32)
    high = pair_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)
    kept = 1 - ramp.clamp(0, 1)
    blended = frequencies / factor * (1 - kept) + frequencies * kept
    if scaling.get("attention_factor") is not None:
        return blended, float(scaling["attention_factor"])
    mscale, all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and all_dim:
        return blended, yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
    return blended, yarn_mscale(factor)


def _longrope_attention_factor(scaling: Mapping[str, Any]) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling["factor"])
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(float(scaling["original_max_position_embeddings"])))


def _llama3(frequencies: torch.Tensor, scaling: Mapping[str, Any]) -> torch.Tensor:
    factor = float(scaling["factor"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    context = float(scaling["original_max_position_embeddings"])
    wavelength = 2 * math.pi / frequencies
    blend = (context / wavelength - low) / (high - low)
    blended = (1 - blend) * frequencies / factor + blend * frequencies
    scaled = torch.where(wavelength > context / low, frequencies / factor, blended)
    return torch.where(wavelength < context / high, frequencies, scaled)


def rotary_table(
    inverse: torch.Tensor, start: int, stop: int, dtype: torch.dtype, factor: float = 1.0
) -> torch.Tensor:
    """`factor` times cosines and sines of positions [start, stop): `dtype` [stop - start, 2, dim]; each half of a row repeats."""
    angles = torch.arange(start, stop, dtype=torch.float32, device=inverse.device).outer(inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()), dim=1).mul_(factor).to(dtype)


def rotary_embedding(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> torch.Tensor:
    """Rotates the first `rotary_dim` elements of each head by its token's angles; the others pass through.

    x: [T, heads, head_dim], any strides; cos, sin: [T, 1, rotary_dim] rows of `rotary_table`, rotary_dim <= head_dim.
    Element i is paired with i + rotary_dim / 2; interleaved: element 2i with 2i + 1 (GPT-J, ChatGLM, Cohere). The
    tables are the same for both: angle i stands at i and at i + rotary_dim / 2. Returns a new tensor.
    """
    if x.is_cuda:
        from lightllm.ops.triton import rotary as triton_impl

        return triton_impl.rotary_embedding(x, cos, sin, interleaved)
    rotary_dim = cos.shape[-1]
    half = rotary_dim // 2
    if interleaved:
        return _rotate_pairs(x, cos[..., :half], sin[..., :half])
    sin = sin[..., :half]
    if rotary_dim == x.shape[-1]:
        rotated, first, second = torch.mul(x, cos), x[..., :half], x[..., half:]
    else:
        rotated, first, second = x.clone(), x[..., :half], x[..., half:rotary_dim]
        rotated[..., :rotary_dim].mul_(cos)
    rotated[..., :half].addcmul_(second, sin, value=-1)
    rotated[..., half:rotary_dim].addcmul_(first, sin)
    return rotated


def _rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    rotary_dim = 2 * cos.shape[-1]
    even, odd = x[..., 0:rotary_dim:2], x[..., 1:rotary_dim:2]
    rotated = x.clone()
    rotated[..., 0:rotary_dim:2] = torch.mul(even, cos).addcmul_(odd, sin, value=-1)
    rotated[..., 1:rotary_dim:2] = torch.mul(odd, cos).addcmul_(even, sin)
    return rotated


def rotary_and_write_kv(
    qk: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    kv: KvLayer,
    slots: torch.Tensor,
    interleaved: bool = False,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    keep_keys: bool = False,
) -> torch.Tensor:
    """Returns the rotated queries [T, heads, head_dim]; rotated keys and the values go to `kv` at `slots`.

    keep_keys: return the rotated keys as well, behind the queries: [T, heads + kv_heads, head_dim].

    qk: [T, heads + kv_heads, head_dim], queries first; v: [T, kv_heads, head_dim]; both any strides; cos, sin:
    [T, 1, rotary_dim] as for `rotary_embedding`; slots: int64 [T]. No slot but the last (which absorbs padding) may occur
    twice. interleaved: see `rotary_embedding`.
    norm_weight: [heads + kv_heads, head_dim], or [head_dim] for all alike: `rms_norm` of each query and key head with it
    and `eps` comes before the rotation.
    """
    if kv.scales is not None:  # codes are made of what the kernel leaves side by side
        plain = KvLayer(v.new_empty(len(v), 2 * v.shape[1], v.shape[2]), v.shape[1])
        places = torch.arange(len(v), device=v.device)
        q = rotary_and_write_kv(qk, v, cos, sin, plain, places, interleaved, norm_weight, eps, keep_keys)
        write_kv(plain.keys, plain.values, kv, slots)
        return q
    if qk.is_cuda:
        from lightllm.ops.triton import rotary as triton_impl

        return triton_impl.rotary_and_write_kv(
            qk, v, cos, sin, kv, slots, interleaved, norm_weight, eps, keep_keys
        )
    done = cpu_impl.rotary_and_write_kv(qk, v, cos, sin, kv, slots, interleaved, norm_weight, eps, keep_keys)
    if done is not None:
        return done
    if norm_weight is not None:
        qk = rms_norm(qk, norm_weight, eps)
    heads = qk.shape[1] - v.shape[1]
    rotated = rotary_embedding(qk, cos, sin, interleaved)
    write_kv(rotated[:, heads:], v, kv, slots)
    return rotated if keep_keys else rotated[:, :heads]

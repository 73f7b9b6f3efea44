"""Matrices in the formats of published checkpoints: written, and read again, from what their descriptions say alone.

Nothing here is shared with `lightllm/quantization/`: numbers are packed and unpacked bit by bit.

    tensors = FORMATS["gptq"].write(weight, generator)     suffix -> tensor, of a random weight near `weight`
    same = FORMATS["gptq"].read(tensors, weight.shape)     float32 [out, in]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""Which of eight neighbouring outputs stands in the lowest bits of a word, in the next, ..."""
E2M1 = np.array([sign * value for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], np.float32)


def pack(numbers: np.ndarray, bits: int) -> torch.Tensor:
    """numbers: [n, count], each in the next `bits` bits of a row of int32 words, low bits first."""
    each = (
        (numbers[:, :, None].astype(np.int64) >> np.arange(bits) & 1)
        .astype(np.uint8)
        .reshape(len(numbers), -1)
    )
    each = np.pad(each, ((0, 0), (0, -each.shape[1] % 32)))
    return torch.from_numpy(np.packbits(each, axis=1, bitorder="little").view(np.int32).copy())


def unpack(words: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """The inverse: int64 [n, count]."""
    each = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, bitorder="little")
    each = each[:, : count * bits].reshape(len(each), count, bits).astype(np.int64)
    return (each << np.arange(bits)).sum(-1)


def in_groups(
    weight: torch.Tensor, group_of: np.ndarray, bits: int, symmetric: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [out, in] from 0 to 2^bits - 1, zeros and scales [out, groups], of plain rounding."""
    values, most = weight.float().numpy(), (1 << bits) - 1
    groups = int(group_of.max()) + 1
    scales, zeros = (np.zeros((len(values), groups)) for _ in range(2))
    for group in range(groups):
        own = values[:, group_of == group]
        low, high = np.minimum(own.min(1), 0), np.maximum(own.max(1), 0)
        if symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, group] = np.float16((high - low) / most + 1e-4)
        zeros[:, group] = (most + 1) // 2 if symmetric else np.round(-low / scales[:, group]).clip(0, most)
    codes = np.round(values / scales[:, group_of]) + zeros[:, group_of]
    return codes.clip(0, most).astype(np.int64), zeros.astype(np.int64), scales.astype(np.float32)


def dequantised(
    codes: np.ndarray, zeros: np.ndarray | int, scales: np.ndarray, group_of: np.ndarray
) -> torch.Tensor:
    zeros = zeros if isinstance(zeros, int) else zeros[:, group_of]
    return torch.from_numpy(((codes - zeros) * scales[:, group_of]).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Gptq:
    bits: int = 4
    group: int = 32
    version: int = 1
    act_order: bool = False
    symmetric: bool = True

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq", "bits": self.bits, "group_size": self.group, "desc_act": self.act_order,
            "sym": self.symmetric, "lm_head": False, "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
        }  # fmt: skip

    @property
    def ones(self) -> torch.Tensor:
        """A word of ones: version 1 takes it from a word of zeros, so that a zero of 0 borrows from the next."""
        return pack(np.ones((1, 32 // self.bits), np.int64), self.bits)[0, 0]

    def write(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        inputs = weight.shape[1]
        group_of = np.arange(inputs) // (self.group if self.group > 0 else inputs)
        if self.act_order:
            group_of = group_of[torch.randperm(inputs, generator=generator).numpy()]
        codes, zeros, scales = in_groups(weight, group_of, self.bits, self.symmetric)
        if self.version == 1 and self.bits == 3:
            kept = pack((zeros - 1).T % 8, 3)
        else:
            kept = pack(zeros.T, self.bits) - (self.ones if self.version == 1 else 0)
        return {
            ".qweight": pack(codes, self.bits).T.contiguous(), ".qzeros": kept,
            ".scales": torch.from_numpy(scales.T.copy()).half(), ".g_idx": torch.from_numpy(group_of).int(),
        }  # fmt: skip

    def read(self, tensors: Tensors, shape: torch.Size) -> torch.Tensor:
        outputs, inputs = shape
        codes = unpack(tensors[".qweight"].T, self.bits, inputs)
        stored = tensors[".qzeros"]
        if self.version == 1 and self.bits != 3:
            stored = stored + self.ones
        zeros = unpack(stored, self.bits, outputs).T
        if self.version == 1 and self.bits == 3:
            zeros = (zeros + 1) % 8
        return dequantised(
            codes, zeros, tensors[".scales"].float().numpy().T, tensors[".g_idx"].long().numpy()
        )


@dataclasses.dataclass(frozen=True)
class Awq:
    group: int = 32

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group,
            "zero_point": True,
            "version": "gemm",
        }

    def write(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        group_of = np.arange(weight.shape[1]) // self.group
        codes, zeros, scales = in_groups(weight, group_of, 4, False)
        ordered = (numbers.T.reshape(numbers.shape[1], -1, 8)[:, :, AWQ_ORDER] for numbers in (codes, zeros))
        qweight, qzeros = (pack(numbers.reshape(len(numbers), -1), 4) for numbers in ordered)
        return {".qweight": qweight, ".qzeros": qzeros, ".scales": torch.from_numpy(scales.T.copy()).half()}

    def read(self, tensors: Tensors, shape: torch.Size) -> torch.Tensor:
        def numbers(name: str) -> np.ndarray:
            stored = unpack(tensors[name], 4, shape[0]).reshape(-1, shape[0] // 8, 8)
            found = np.zeros_like(stored)
            for place, output in enumerate(AWQ_ORDER):
                found[:, :, output] = stored[:, :, place]
            return found.reshape(len(stored), -1).T

        group_of = np.arange(shape[1]) // self.group
        return dequantised(
            numbers(".qweight"), numbers(".qzeros"), tensors[".scales"].float().numpy().T, group_of
        )


@dataclasses.dataclass(frozen=True)
class Fp8:
    block: tuple[int, int] | None = (128, 128)
    scheme: str = "dynamic"
    rows: bool = False
    """fbgemm_fp8: a scale for each output."""

    @property
    def config(self) -> dict[str, Any]:
        if self.rows:
            return {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []}
        config = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": self.scheme}
        return config if self.block is None else {**config, "weight_block_size": list(self.block)}

    def write(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        rows, columns = (1, weight.shape[1]) if self.rows else self.block or weight.shape
        height, width = (-(-size // step) for size, step in zip(weight.shape, (rows, columns)))
        scales, codes = torch.zeros(height, width), torch.zeros_like(weight, dtype=torch.float8_e4m3fn)
        for i in range(height):
            for j in range(width):
                place = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scales[i, j] = weight[place].abs().max() / 448
                codes[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
        found = {".weight": codes}
        if self.block is not None and not self.rows:
            return {**found, ".weight_scale_inv": scales}
        found[".weight_scale"] = scales if self.rows else scales[0, 0]
        return {**found, ".input_scale": torch.tensor(0.5)} if self.scheme == "static" else found

    def read(self, tensors: Tensors, shape: torch.Size) -> torch.Tensor:
        scales = tensors.get(".weight_scale_inv", tensors.get(".weight_scale"))
        assert scales is not None
        if scales.dim() == 0:
            return tensors[".weight"].float() * scales
        rows, columns = (1, shape[1]) if self.rows else self.block or shape
        whole = (
            scales.float().repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]
        )
        return tensors[".weight"].float() * whole


@dataclasses.dataclass(frozen=True)
class Compressed:
    """compressed-tensors."""

    kind: str = "pack-quantized"
    bits: int = 4
    strategy: str = "group"
    group: int = 32
    symmetric: bool = True
    floats: bool = False
    act_order: bool = False

    @property
    def weights(self) -> dict[str, Any]:
        return {
            "num_bits": self.bits, "type": "float" if self.floats else "int", "strategy": self.strategy,
            "symmetric": self.symmetric, "dynamic": False, "group_size": self.group if self.strategy == "group" else None,
            "block_structure": [self.group, self.group] if self.strategy == "block" else None,
            "actorder": "group" if self.act_order else None,
        }  # fmt: skip

    @property
    def config(self) -> dict[str, Any]:
        group = {
            "targets": ["Linear"],
            "weights": self.weights,
            "input_activations": None,
            "output_activations": None,
        }
        return {
            "quant_method": "compressed-tensors", "format": self.kind, "quantization_status": "compressed",
            "config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None,
        }  # fmt: skip

    def group_of(self, inputs: int) -> np.ndarray:
        return np.arange(inputs) // (self.group if self.strategy == "group" else inputs)

    def write(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        outputs, inputs = weight.shape
        if self.floats:
            block = {"block": (self.group, self.group), "tensor": None, "channel": (1, inputs)}[self.strategy]
            found = Fp8(block).write(weight, generator)
            scales = found.get(".weight_scale_inv", found.get(".weight_scale"))
            assert scales is not None
            return {
                ".weight": found[".weight"],
                ".weight_scale": scales.reshape(1) if scales.dim() == 0 else scales,
            }
        group_of = self.group_of(inputs)
        if self.act_order:
            group_of = group_of[torch.randperm(inputs, generator=generator).numpy()]
        source = weight.reshape(1, -1) if self.strategy == "tensor" else weight
        source_groups = np.zeros(source.shape[1], np.int64) if self.strategy == "tensor" else group_of
        codes, zeros, scales = in_groups(source, source_groups, self.bits, self.symmetric)
        codes, middle = codes.reshape(outputs, inputs), 1 << self.bits - 1
        found = {
            ".weight_scale": torch.from_numpy(scales.reshape(-1) if self.strategy == "tensor" else scales)
        }
        if self.kind == "pack-quantized":
            found |= {
                ".weight_packed": pack(codes, self.bits),
                ".weight_shape": torch.tensor([outputs, inputs]),
            }
            if self.act_order:
                found[".weight_g_idx"] = torch.from_numpy(group_of).int()
            if not self.symmetric:
                found[".weight_zero_point"] = pack(zeros.T, self.bits).T.contiguous()
        else:
            found[".weight"] = torch.from_numpy((codes - middle).astype(np.int8))
            if not self.symmetric:
                found[".weight_zero_point"] = torch.from_numpy((zeros - middle).astype(np.int8))
        return found

    def read(self, tensors: Tensors, shape: torch.Size) -> torch.Tensor:
        outputs, inputs = shape
        scales = tensors[".weight_scale"].float()
        if self.floats:
            if self.strategy == "block":
                whole = scales.repeat_interleave(self.group, 0)[:outputs].repeat_interleave(self.group, 1)[
                    :, :inputs
                ]
                return tensors[".weight"].float() * whole
            return tensors[".weight"].float() * scales
        group_of = tensors[".weight_g_idx"].long().numpy() if self.act_order else self.group_of(inputs)
        middle = 1 << self.bits - 1
        if self.kind == "pack-quantized":
            codes, zeros = unpack(tensors[".weight_packed"], self.bits, inputs) - middle, 0
            if not self.symmetric:
                zeros = unpack(tensors[".weight_zero_point"].T, self.bits, outputs).T - middle
        else:
            codes, zeros = tensors[".weight"].long().numpy(), 0
            if not self.symmetric:
                zeros = tensors[".weight_zero_point"].long().numpy()
        if self.strategy == "tensor":
            return torch.from_numpy((codes * scales.numpy()).astype(np.float32))
        return dequantised(codes, zeros, scales.numpy(), group_of)


@dataclasses.dataclass(frozen=True)
class Mxfp4:
    """Stacks of experts [count, out, in], as gpt-oss has them."""

    config = {"quant_method": "mxfp4", "modules_to_not_convert": [
        "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
    ]}  # fmt: skip

    def write(self, weight: torch.Tensor, generator: torch.Generator) -> Tensors:
        groups = weight.float().unflatten(-1, (-1, 32)).numpy()
        exponents = np.floor(np.log2(np.abs(groups).max(-1))) - 2
        scaled = groups / 2.0 ** exponents[..., None]
        codes = np.abs(scaled[..., None] - E2M1).argmin(-1)
        return {
            "_blocks": torch.from_numpy((codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)),
            "_scales": torch.from_numpy((exponents + 127).astype(np.uint8)),
        }  # fmt: skip

    def read(self, tensors: Tensors, shape: torch.Size) -> torch.Tensor:
        blocks = tensors["_blocks"].numpy()
        numbers = np.stack((E2M1[blocks & 15], E2M1[blocks >> 4]), -1).reshape(*blocks.shape[:-1], 32)
        scales = 2.0 ** (tensors["_scales"].numpy().astype(np.float64) - 127)
        return torch.from_numpy((numbers * scales[..., None]).astype(np.float32)).flatten(-2)


FORMATS: dict[str, Gptq | Awq | Fp8 | Compressed] = {
    "fp8 blocks": Fp8((32, 32)),
    "fp8 tensor": Fp8(None),
    "fp8 tensor, static": Fp8(None, "static"),
    "fp8 rows": Fp8(rows=True),
    "awq": Awq(),
    "gptq": Gptq(),
    "gptq, asymmetric": Gptq(symmetric=False),
    "gptq, act-order": Gptq(act_order=True, symmetric=False),
    "gptq, 2 bits": Gptq(bits=2, symmetric=False),
    "gptq, 3 bits": Gptq(bits=3, symmetric=False),
    "gptq, 8 bits, act-order": Gptq(bits=8, act_order=True, symmetric=False),
    "gptq v2": Gptq(version=2, symmetric=False),
    "gptq, whole inputs": Gptq(group=-1),
    "int8": Compressed("int-quantized", 8, "channel"),
    "int8, one scale": Compressed("int-quantized", 8, "tensor"),
    "int8, asymmetric": Compressed("int-quantized", 8, "channel", symmetric=False),
    "int8, naive, groups": Compressed("naive-quantized", 8, "group"),
    "float8, rows": Compressed("float-quantized", 8, "channel", floats=True),
    "float8, one scale": Compressed("float-quantized", 8, "tensor", floats=True),
    "float8, blocks": Compressed("float-quantized", 8, "block", floats=True),
    "w4a16": Compressed(),
    "w4a16, asymmetric": Compressed(symmetric=False),
    "w4a16, act-order": Compressed(act_order=True),
    "w4a16, rows": Compressed(strategy="channel"),
    "w8a16": Compressed(bits=8),
    "w8a16, asymmetric": Compressed(bits=8, symmetric=False),
}  # fmt: skip


def quantise(
    tensors: Tensors, format_of: Callable[[str], Gptq | Awq | Fp8 | Compressed | None]
) -> tuple[Tensors, Tensors]:
    """A checkpoint's tensors with some matrices in few bits, and the same numbers dense. format_of: of a module; None: dense."""
    few, same = dict(tensors), dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        own = (
            format_of(name.removesuffix(".weight"))
            if name.endswith(".weight") and tensor.dim() == 2
            else None
        )
        if own is not None:
            del few[name]
            written = own.write(tensor, generator)
            few |= {name.removesuffix(".weight") + suffix: part for suffix, part in written.items()}
            same[name] = own.read(written, tensor.shape)
    return few, same

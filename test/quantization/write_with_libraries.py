"""No test: wrote the files in `written/`, each a small matrix as a library packs it, and as it dequantises it (`dequantised`).

    python test/quantization/write_with_libraries.py FOLDER

needs compressed-tensors (0.20.1 was used), autoawq (0.2.9), gptqmodel (7.3.4) and transformers (5.x); on a CPU. Each file is
named as its case in `support/few_bits.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

OUTPUTS, INPUTS, GROUP = 32, 64, 32


def compressed_tensors(weight: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    cases = {
        "w4a16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}),
        "w4a16, asymmetric": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP, "symmetric": False}),
        "w4a16, rows": ("pack-quantized", {"num_bits": 4, "strategy": "channel"}),
        "w8a16": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": GROUP}),
        "w8a16, asymmetric": ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": GROUP, "symmetric": False}),
        "int8": ("int-quantized", {"num_bits": 8, "strategy": "channel"}),
        "int8, asymmetric": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
        "int8, one scale": ("int-quantized", {"num_bits": 8, "strategy": "tensor"}),
        "float8, rows": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        "float8, one scale": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        "float8, blocks": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [GROUP, GROUP]}),
    }  # fmt: skip
    found = {}
    for name, (kind, fields) in cases.items():
        args = QuantizationArgs(**fields)
        grouped = {
            "group": weight.unflatten(1, (-1, GROUP)),
            "channel": weight[:, None],
            "tensor": weight.reshape(1, 1, -1),
            "block": weight.unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP)).transpose(1, 2).flatten(2),
        }[fields["strategy"]]
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        if fields["strategy"] == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        state = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
        scheme = QuantizationScheme(targets=["Linear"], weights=args)
        compressor = BaseCompressor.get_value_from_registry(kind)
        written = compressor.compress(state, scheme)
        same = compressor.decompress(written, scheme)["weight"]
        found[name] = {f".{key}": value for key, value in written.items()} | {"dequantised": same}
    return found


def autoawq(weight: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(0, 15)
    codes = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = ((codes - zeros[..., None]) * scales[..., None]).flatten(1)
    made = WQLinear_GEMM.from_linear(
        linear, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous()
    )
    tensors = {".qweight": made.qweight, ".qzeros": made.qzeros, ".scales": made.scales}
    same = dequantize_gemm(made.qweight, made.qzeros, made.scales.float(), 4, GROUP).T
    return {"awq": {**tensors, "dequantised": same}}


def gptqmodel(weight: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    cases: dict[str, dict[str, Any]] = {
        "gptq": {},
        "gptq, asymmetric": {"symmetric": False},
        "gptq v2": {"symmetric": False, "version": 2},
        "gptq, act-order": {"symmetric": False, "ordered": True},
        "gptq, 2 bits": {"bits": 2, "symmetric": False},
        "gptq, 3 bits": {"bits": 3, "symmetric": False},
        "gptq, 8 bits, act-order": {"bits": 8, "symmetric": False, "ordered": True},
        "gptq, whole inputs": {"group": INPUTS},
    }
    return {
        name: gptq_case(weight, TorchLinear, convert_gptq_v2_to_v1_format_module, **case)
        for name, case in cases.items()
    }


def gptq_case(
    weight: torch.Tensor, linear_class: Any, to_v1: Any, bits: int = 4, group: int = GROUP, symmetric: bool = True,
    version: int = 1, ordered: bool = False,
) -> dict[str, torch.Tensor]:  # fmt: skip
    group_of = torch.arange(INPUTS) // group
    if ordered:
        group_of = group_of[torch.randperm(INPUTS, generator=torch.Generator().manual_seed(1))]
    most, groups = (1 << bits) - 1, int(group_of.max()) + 1
    low, high = (
        torch.stack([kind(weight[:, group_of == g], 1) for g in range(groups)], 1)
        for kind in (torch.amin, torch.amax)
    )
    low = low.clamp(max=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / most).half().float()
    zeros = torch.full_like(scales, (most + 1) // 2) if symmetric else (-low / scales).round().clamp(0, most)
    made = linear_class(
        bits=bits, group_size=group, sym=symmetric, desc_act=ordered, in_features=INPUTS, out_features=OUTPUTS, bias=False,
        pack_dtype=torch.int32, dtype=torch.float16, register_buffers=True,
    )  # fmt: skip
    linear = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)
    linear.weight.data = weight.clone()
    made.pack_original(linear, scales, zeros, group_of.int())
    made.scales = made.scales.float()
    made.post_init()
    same = made.dequantize_weight().T.float()
    if version == 1:
        to_v1(made, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
    return {
        ".qweight": made.qweight, ".qzeros": made.qzeros, ".scales": made.scales.half(), ".g_idx": made.g_idx.int(),
        "dequantised": same,
    }  # fmt: skip


def transformers(weight: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
    """Reads what was written by hand: it packs neither form."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(2)
    blocks = torch.randint(256, (2, OUTPUTS, INPUTS // 32, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(115, 130, (2, OUTPUTS, INPUTS // 32), generator=generator, dtype=torch.uint8)
    same = convert_moe_packed_tensors(blocks.clone(), scales.clone(), dtype=torch.float32).transpose(1, 2)
    codes = weight.mul(100).to(torch.float8_e4m3fn)
    inverse = torch.rand(OUTPUTS // 32, INPUTS // 32, generator=generator)
    whole = Fp8Dequantize(None)._dequantize_one(codes, inverse, torch.float32)
    return {
        "mxfp4": {"_blocks": blocks, "_scales": scales, "dequantised": same},
        "fp8 blocks": {".weight": codes, ".weight_scale_inv": inverse, "dequantised": whole},
    }  # fmt: skip


def main(folder: Path) -> None:
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)) * 0.3
    weight[3], weight[12, :32] = weight[3].abs(), weight[12, :32].abs()  # zeros that are 0
    for library in (compressed_tensors, autoawq, gptqmodel, transformers):
        for name, tensors in library(weight).items():
            kept = {suffix: tensor.detach().clone().contiguous() for suffix, tensor in tensors.items()}
            save_file(kept, folder / f"{name}.safetensors", {"written by": library.__name__})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

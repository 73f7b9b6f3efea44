"""Writes what `compressed_tensors.py` reads: the tensors of a matrix, and `quantization_config`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lightllm.quantization.layout import WHOLE
from lightllm.quantization.quant_types import QuantType
from lightllm.quantization.rounding import Grid
from lightllm.quantization.words import packed_words

_PACKED, _PLAIN = "pack-quantized", "int-quantized"
_ACTIVATIONS = {
    "num_bits": 8,
    "type": "int",
    "strategy": "token",
    "symmetric": True,
    "dynamic": True,
    "group_size": None,
}
"""Of W8A8: quantised by who computes, each token for itself."""


def written_tensors(codes: torch.Tensor, grid: Grid, kind: QuantType) -> dict[str, torch.Tensor]:
    """Suffix of the module's name -> tensor. codes, grid: as `rounding.py` makes them, of int8 or int4."""
    scales = grid.scales.contiguous()
    if kind.coded_activations:
        return {".weight": codes, ".weight_scale": scales}
    numbers = codes.view(torch.uint8) ^ 128 if kind.bits == 8 else codes
    found = {
        ".weight_packed": packed_words(numbers, kind.bits),
        ".weight_scale": scales,
        ".weight_shape": torch.tensor(codes.shape),
    }
    if grid.zeros is not None:
        found[".weight_zero_point"] = packed_words(grid.zeros.T, kind.bits).T.contiguous()
    return found


def config_of(kind: QuantType, groups: Mapping[str, int], dense: Sequence[str]) -> dict[str, Any]:
    """groups: how many inputs share a scale in each module that is quantised; dense: linear layers that are not. Where modules
    differ, most of them are a group of the whole class, the others are named."""
    sizes = Counter(groups.values()).most_common()
    config_groups = {}
    for number, (group, _) in enumerate(sizes):
        named = sorted(module for module, own in groups.items() if own == group)
        config_groups[f"group_{number}"] = {
            "targets": ["Linear"] if number == 0 else named,
            "weights": _weights(kind, group),
            "input_activations": dict(_ACTIVATIONS) if kind.coded_activations else None,
            "output_activations": None,
        }
    return {
        "quant_method": "compressed-tensors", "format": _PLAIN if kind.coded_activations else _PACKED,
        "quantization_status": "compressed", "config_groups": config_groups, "ignore": sorted(dense), "kv_cache_scheme": None,
    }  # fmt: skip


def _weights(kind: QuantType, group: int) -> dict[str, Any]:
    return {
        "num_bits": kind.bits, "type": "int", "strategy": "channel" if group == WHOLE else "group",
        "group_size": None if group == WHOLE else group, "symmetric": not kind.zeros, "dynamic": False,
    }  # fmt: skip

"""Model folders that tools/quantize.py writes, and what the format's description says of their numbers."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from lightllm.quantization.quant_types import QUANT_TYPES, QuantType
from support.few_bits import Compressed

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from quantize import quantise_folder  # noqa: E402

TEXTS = [[(7 * i * i + 13 * k * i + k) % 380 for i in range(48)] for k in range(6)]
KINDS = {
    "w8a8": QUANT_TYPES["w8a8"],
    "w8a16": QUANT_TYPES["w8a16"],
    "w4a16": dataclasses.replace(QUANT_TYPES["w4a16"], zeros=False),
    "w4a16, zeros": QUANT_TYPES["w4a16"],
}


def written(model: Path, folder: Path, kind: QuantType, texts: list[list[int]] | None = None) -> Path:
    assert list(quantise_folder(model, folder, kind, texts or []))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, torch.Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        found |= load_file(folder / file)
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values())
    return found


def dequantised(folder: Path) -> dict[str, torch.Tensor]:
    """All of a written folder's tensors, dense, read as the format's description says (`support/few_bits.py`)."""
    tensors, config = (
        tensors_of(folder),
        json.loads((folder / "config.json").read_text())["quantization_config"],
    )
    named = {name: group for group in config["config_groups"].values() for name in group["targets"]}
    found = {}
    for name in tensors:
        module, _, suffix = name.rpartition(".")
        if suffix == "weight_scale":
            weights = named.get(module, named["Linear"])["weights"]
            of = {
                suffix.removeprefix(module): t
                for suffix, t in tensors.items()
                if suffix.startswith(f"{module}.")
            }
            packed = of.get(".weight_packed")
            shape = of[".weight"].shape if packed is None else torch.Size(of[".weight_shape"].tolist())
            read = Compressed(
                config["format"],
                weights["num_bits"],
                weights["strategy"],
                weights["group_size"],
                weights["symmetric"],
            )
            found[f"{module}.weight"] = read.read(of, shape)
        elif not suffix.startswith("weight_") and f"{module}.weight_scale" not in tensors:
            found[name] = tensors[name]
    return found

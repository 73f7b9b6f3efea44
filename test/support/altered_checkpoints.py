"""Checkpoints that contradict themselves, made from whole ones, and what transformers takes them for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

FORMATS = ["safetensors", "bin"]
ABSENT = object()
"""In `edit_json`: the key is taken out."""


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    value |= changes
    path.write_text(json.dumps({name: item for name, item in value.items() if item is not ABSENT}))


def alter_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], weight_format: str = "safetensors"
) -> None:
    """Writes the checkpoint anew as one file of `weight_format`, its tensors by name changed in place."""
    tensors: dict[str, torch.Tensor] = {}
    for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
        tensors |= load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        file.unlink()
    for index in folder.glob("*.index.json"):
        index.unlink()
    change(tensors)
    if weight_format == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def logits_of_transformers(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """float32 [T, vocab] of what `AutoModelForCausalLM` makes of the folder."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0]

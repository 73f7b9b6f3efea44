"""Finds the class of a checkpoint's architecture and loads it. Called by the backend."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel
from lightllm.models.base import TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import dtype_name, normalise
from lightllm.weights.checkpoint import open_checkpoint
from lightllm.weights.dummy import DummyWeights
from lightllm.weights.reader import WeightReader
from lightllm.weights.source import TensorSource

ARCHITECTURES = {"LlamaForCausalLM": "lightllm.models.llama", "Qwen3ForCausalLM": "lightllm.models.qwen3"}
"""`architectures` of a config.json -> the module with a class of that name; imported when needed."""

_MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""For a config.json without `architectures`."""


def load_model(
    model_dir: str,
    *,
    data_type: str | None,
    device: torch.device,
    load_way: str = "HF",
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[str], None] = lambda text: None,
    show_bar: bool = False,
) -> TpPartBaseModel:
    """This rank's part of the model in `model_dir`, ready to compute.

    data_type: overrides the checkpoint's dtype (bf16, fp16, fp32); load_way: "HF", or "dummy" for random weights in
    the shapes of config.json; progress: is told in words how far it has come, from several threads; show_bar: a
    progress bar on stderr. Raises `InvalidModel`.
    """
    raw = _read_config(model_dir)
    architecture = find_architecture(raw)
    whole = normalise(raw, architecture)
    source: TensorSource
    if load_way == "dummy":
        name = dtype_name(data_type) if data_type else whole.dtype or "bfloat16"
        source = DummyWeights(getattr(torch, name))
    else:
        source = open_checkpoint(model_dir)
        name = (
            dtype_name(data_type) if data_type else whole.dtype or str(source.dtype()).removeprefix("torch.")
        )
    reader = WeightReader(source, progress, show_bar)
    build = Builder(reader, whole, getattr(torch, name), device, TpGroup(rank, world_size))
    model_class = getattr(importlib.import_module(ARCHITECTURES[architecture]), architecture)
    model = model_class(whole.for_rank(world_size), build)
    reader.finish()
    return model


def find_architecture(raw: Mapping[str, Any]) -> str:
    """The supported architecture that a config.json names; raises `InvalidModel` with the list of those there are."""
    named = list(raw.get("architectures") or [])
    if not named and raw.get("model_type") in _MODEL_TYPES:
        named = [_MODEL_TYPES[raw["model_type"]]]
    for name in named:
        if name in ARCHITECTURES:
            return name
    raise InvalidModel(
        f"Architecture {', '.join(named) or raw.get('model_type')} is not supported.",
        f"Supported are: {', '.join(sorted(ARCHITECTURES))}.",
    )


def _read_config(model_dir: str) -> dict[str, Any]:
    path = Path(model_dir) / "config.json"
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InvalidModel(f"{path} does not exist.", "Is --model_dir a model folder?") from error
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path} cannot be read: {error}.") from error
    if not isinstance(raw, dict):
        raise InvalidModel(f"{path} is not a JSON object.")
    return raw

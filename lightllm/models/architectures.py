"""The names of the supported architectures, without their code: importing this loads no torch.

The launch command refuses a model here, before any process starts; the registry loads what is named here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel

ARCHITECTURES = {"LlamaForCausalLM": "lightllm.models.llama", "Qwen3ForCausalLM": "lightllm.models.qwen3"}
"""`architectures` of a config.json -> the module with a class of that name; imported when needed."""

_MODEL_TYPES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""For a config.json without `architectures`."""


def find_architecture(raw: Mapping[str, Any]) -> str:
    """The supported architecture that a config.json names; raises `InvalidModel` with the list of those there are."""
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InvalidModel(f"architectures in config.json must be a list of names, got {named!r}.")
    if not named and raw.get("model_type") in _MODEL_TYPES:
        named = [_MODEL_TYPES[raw["model_type"]]]
    for name in named:
        if name in ARCHITECTURES:
            return name
    raise InvalidModel(
        f"Architecture {', '.join(named) or raw.get('model_type')} is not supported.",
        f"Supported are: {', '.join(sorted(ARCHITECTURES))}.",
    )


def read_config(model_dir: str) -> dict[str, Any]:
    """config.json as it is. Raises `InvalidModel`."""
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

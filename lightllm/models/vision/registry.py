"""Loads the vision part of a checkpoint with the class of its family. Called by the Visual Server."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidModel
from lightllm.model_folder.config import read_whole_config
from lightllm.models.builder import Builder
from lightllm.models.config import dtype_name
from lightllm.models.vision.model import VisionModel
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.torch import TorchAttention
from lightllm.quantization.formats import make_format
from lightllm.weights.reader import ModuleTensors, WeightReader

_FAMILIES = {
    "llava": "llava.LlavaVision",
    "llava_llama": "llava.LlavaVision",
    "qwen2_vl": "qwen2_vl.Qwen2VLVision",
    "qwen2_5_vl": "qwen2_5_vl.Qwen25VLVision",
    "qwen3_vl": "qwen3_vl.Qwen3VLVision",
    "gemma3": "gemma3.Gemma3Vision",
    "internvl_chat": "internvl.InternVLVision",
    "internvl": "internvl.InternVLVision",
    "qwen": "qwen_vl.QwenVLVision",
}
"""`model_type` of a config.json -> module in this folder, imported when needed, and its class."""


def vision_model_of(config: Mapping[str, Any]) -> type[VisionModel] | None:
    """The class for a config.json; None: it describes no model that sees, or none of these families."""
    known = _FAMILIES.get(config.get("model_type", ""))
    if known is None or (known.startswith("qwen_vl") and "visual" not in config):
        return None
    module, _, name = known.partition(".")
    return getattr(importlib.import_module(f"lightllm.models.vision.{module}"), name)


def load_vision_model(
    model_dir: str,
    *,
    data_type: str | None,
    device: torch.device,
    group: TpGroup | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> VisionModel:
    """This rank's part of the vision encoder and projector in `model_dir`; no tensor of the language model is read.

    data_type: overrides the checkpoint's dtype (bf16, fp16, fp32); group: the ranks that share the encoder (None: this one alone);
    progress: is told in words how far it has come, from several threads. Raises `InvalidModel`.
    """
    raw, folder, group = read_whole_config(model_dir), Path(model_dir), group or TpGroup()
    model_class = vision_model_of(raw)
    if model_class is None:
        raise InvalidModel(f"{model_dir} has no vision encoder of a supported family.")
    source, config = model_class.open(raw, folder), model_class.read_config(raw, folder)
    name = data_type or raw.get("dtype") or raw.get("torch_dtype") or str(source.dtype())
    dtype = getattr(torch, dtype_name(str(name).removeprefix("torch.")))
    reader = WeightReader(source, progress)
    # Encoders attend within images: none of the backends, which attend over KV memory, is used.
    unused = AttentionBackends(TorchAttention(), TorchAttention(), TorchAttention())
    build = Builder(ModuleTensors(reader, dtype, device), make_format(None), config, group, unused)
    model = model_class(config.for_rank(group.world_size), build)
    reader.finish()
    return model

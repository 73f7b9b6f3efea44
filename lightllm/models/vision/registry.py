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
from lightllm.weights.dummy import DummyWeights
from lightllm.weights.memory_check import check_memory
from lightllm.weights.reader import ModuleTensors, WeightReader
from lightllm.weights.source import TensorSource

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
    load_way: str = "HF",
    memory: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> VisionModel:
    """This rank's part of the vision encoder and projector in `model_dir`; no tensor of the language model is read.

    data_type: overrides the checkpoint's dtype (bf16, fp16, fp32); group: the ranks that share the encoder (None: this one alone);
    load_way: "HF", or "dummy" for random weights in the shapes of config.json; memory: bytes that there are for this rank's part
    (None: it is not asked); progress: is told in words how far it has come, from several threads. Raises `InvalidModel`.
    """
    raw, folder, group = read_whole_config(model_dir), Path(model_dir), group or TpGroup()
    model_class = vision_model_of(raw)
    if model_class is None:
        raise InvalidModel(f"{model_dir} has no vision encoder of a supported family.")
    config, name = (
        model_class.read_config(raw, folder),
        data_type or raw.get("dtype") or raw.get("torch_dtype"),
    )
    source: TensorSource
    if load_way == "dummy":
        dtype = _dtype(name or "bfloat16")
        source = DummyWeights(dtype, memory)
    else:
        source = model_class.open(raw, folder)
        dtype = _dtype(name or source.dtype())
        weights = "weights of the vision encoder"
        check_memory(source, source.names(), dtype, group.world_size, memory, weights)
    reader = WeightReader(source, progress)
    # Encoders attend within images: none of the backends, which attend over KV memory, is used.
    unused = AttentionBackends(TorchAttention(), TorchAttention(), TorchAttention())
    build = Builder(ModuleTensors(reader, dtype, device), make_format(None), config, group, unused)
    model = model_class(config.for_rank(group.world_size), build)
    reader.finish()
    model.weight_bytes = sum(layer.nbytes for layer in build.layers)
    return model


def _dtype(name: object) -> torch.dtype:
    return getattr(torch, dtype_name(str(name).removeprefix("torch.")))

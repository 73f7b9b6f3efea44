"""Loads a checkpoint with the class of its architecture. Called by the backend."""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Collection, Mapping

import torch

from lightllm.distributed.tp_group import TpGroup
from lightllm.models.architectures import ARCHITECTURES
from lightllm.models.base import TpPartBaseModel
from lightllm.models.builder import Builder
from lightllm.models.config import ModelConfig, dtype_name
from lightllm.models.hf_configs import load_config
from lightllm.models.hf_configs.vision_language import language_name
from lightllm.models.pooled_head import CLASSIFIER, PooledHead
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.quantization.formats import make_format
from lightllm.quantization.quant_plan import QuantPlan, check_dense, is_in_layer
from lightllm.weights.checkpoint import open_checkpoint
from lightllm.weights.dummy import DummyWeights
from lightllm.weights.memory_check import check_memory
from lightllm.weights.reader import ModuleTensors, WeightReader
from lightllm.weights.source import TensorSource

logger = logging.getLogger(__name__)


def load_model(
    model_dir: str,
    *,
    data_type: str | None,
    device: torch.device,
    load_way: str = "HF",
    group: TpGroup | None = None,
    attention_backends: AttentionBackends | None = None,
    max_len: int | None = None,
    pooled: PooledHead | None = None,
    memory: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
    show_bar: bool = False,
    quant_plan: QuantPlan | None = None,
) -> TpPartBaseModel:
    """This rank's part of the model in `model_dir`, ready to compute.

    data_type: overrides the checkpoint's dtype (bf16, fp16, fp32); load_way: "HF", or "dummy" for random weights in
    the shapes of config.json; group: the ranks that share the model (None: this one alone); attention_backends: None: Triton on a GPU, torch on a CPU; max_len: the longest context
    that will be served, on which some rotary embeddings depend (None: what the model was first made for); pooled: what it gives
    instead of logits; memory: bytes that there are for this rank's part (None: it is not asked); progress: is told in words how
    far it has come, from several threads; show_bar: a progress bar on stderr; quant_plan: how weights of a dense checkpoint are
    quantised while they are loaded (None: they are not). Raises `InvalidModel`, and `InvalidOption` for a plan that does not fit.
    """
    group = group or TpGroup()
    backends = attention_backends or make_attention_backends("triton", device)
    whole = load_config(model_dir)
    check_dense("none", quant_plan, whole.quantization)
    given = dtype_name(data_type) if data_type else whole.dtype
    model_class = find_class(whole.architecture)
    source: TensorSource
    name_of: Callable[[str], str | None] = str
    if load_way == "dummy":
        name = given or "bfloat16"
        source = DummyWeights(getattr(torch, name), memory)
    else:
        source = open_checkpoint(model_dir)
        name = given or str(source.dtype()).removeprefix("torch.")
        name_of = names_of(whole, model_class, source.names())
        own = {spelling: read for spelling in source.names() if (read := name_of(spelling)) is not None}
        if quant_plan is not None:
            quant_plan.check_modules(
                _matrices(source, own, "" if whole.tie_word_embeddings else model_class.names.head)
            )
        bits = functools.partial(_bits_of, quant_plan, own)
        check_memory(source, set(own), getattr(torch, name), group.world_size, memory, "weights", bits)
    if group.rank == 0:
        for line in (*whole.overruled, *source.overruled):
            logger.warning("%s", line)
        _say_served_length(whole, max_len)
    reader = WeightReader(source, progress, show_bar, name_of)
    tensors = ModuleTensors(reader, getattr(torch, name), device)
    build = Builder(
        tensors, make_format(whole.quantization, quant_plan), whole, group, backends, max_len, pooled
    )
    model = model_class(whole.for_rank(group.world_size), build)
    reader.finish()
    model.weight_format = _format_name(whole, quant_plan)
    return model


def _format_name(config: ModelConfig, plan: QuantPlan | None) -> str:
    if plan is not None:
        return f"{plan.described} (quantised while loading)"
    return "" if config.quantization is None else str(config.quantization["quant_method"])


def _matrices(source: TensorSource, names: Mapping[str, str], head: str) -> set[str]:
    """Modules of layers with a matrix, or a stack of them, and the head; names: the model's own of each spelling."""
    found = set()
    for spelling, name in names.items():
        stored, module = source.stored(spelling), name.removesuffix(".weight")
        if stored is not None and len(stored.shape) > 1 and (is_in_layer(module) or module == head):
            found.add(module)
    return found


def _bits_of(plan: QuantPlan | None, names: Mapping[str, str], spelling: str) -> int | None:
    """Of a tensor that is quantised while it is loaded; names: the model's own of each spelling. Raises `InvalidOption`."""
    module = names[spelling].removesuffix(".weight")
    kind = None if plan is None else plan.type_of([module, spelling.removesuffix(".weight")])
    return None if kind is None else kind.bits


def names_of(
    config: ModelConfig, model_class: type[TpPartBaseModel], spellings: Collection[str]
) -> Callable[[str], str | None]:
    """From a tensor's name in the checkpoint to the model's own; None: it is of a vision encoder. Where the layers were saved alone,
    as those of embedding models are, what stands before their names is missing."""
    if config.sees:
        return language_name
    prefix, names = model_class.optional_prefix, model_class.names
    inner = names.layers.rpartition(".")[0]
    if not inner or any(spelling.startswith(f"{inner}.") for spelling in spellings):
        return lambda spelling: spelling.removeprefix(prefix)
    heads = (f"{names.head}.", f"{CLASSIFIER}.")
    return lambda spelling: spelling if spelling.startswith(heads) else f"{inner}.{spelling}"


def _say_served_length(config: ModelConfig, max_len: int | None) -> None:
    """Where a rotary embedding depends on the longest context: see `ops/rotary.py`."""
    for rope in config.ropes:
        original = rope.scaling.get("original_max_position_embeddings")
        kind = rope.scaling["rope_type"]
        if kind in ("dynamic", "qwen_dynamic", "longrope") and max_len and original and max_len > original:
            logger.info(
                "rope %s: all requests, short ones too, are computed for contexts of up to %d tokens; "
                "--max_req_total_len %d serves the model's original ones", kind, max_len, original,
            )  # fmt: skip


def find_class(architecture: str) -> type[TpPartBaseModel]:
    """Imports the one module that has it: a broken one hurts no other model."""
    known = ARCHITECTURES[architecture]
    module = importlib.import_module(known.module_name)
    return getattr(module, known.class_name or architecture)

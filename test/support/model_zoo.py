"""A small random checkpoint of every architecture in its published format, and the reference that it is compared with.

    model = make_zoo_model(tmp_path, "bloom")      # model.path, model.reference(token_ids) -> logits [T, vocab]

Where transformers has the architecture it writes the checkpoint and is the reference. Where it has only a sibling that
computes the same (Llama for InternLM2, Glm for ChatGLM, ...), see `published_formats`. Else see `references/`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from support.checkpoints import write_tokenizer
from support.published_formats import (
    Config,
    Tensors,
    to_chatglm,
    to_deepseek_v3,
    to_experts,
    to_internlm,
    to_internlm2,
    to_minicpm,
    to_mixtral,
    to_qwen,
    without_prefix,
)

VOCAB = 384

BASE: Config = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Entry:
    architecture: str
    """In the config.json."""
    model_type: str
    """Of transformers' model."""
    fields: Config
    """Of its config, beside `BASE`; None: it has no such field."""
    repack: Callable[[Tensors, Config], tuple[Tensors, Config]] | None = None
    """From transformers' tensors and config to the published ones."""
    weight_format: str = "safetensors"
    """"safetensors" in several files with an index, or "bin"."""
    max_len: int | None = None
    """Longest context to be served, where the model depends on it."""
    nulls: tuple[str, ...] = ()
    """Fields that its config says are null."""


@dataclasses.dataclass(frozen=True)
class ZooModel:
    path: Path
    reference: Callable[[list[int]], torch.Tensor]
    """Token ids -> float32 [T, vocab]"""
    half: Callable[[list[int]], torch.Tensor]
    """The same, computed in the checkpoint's dtype: every operation's result is rounded to it."""
    max_len: int | None = None
    """Longest context to be served, where the model depends on it."""
    model: Any = None
    """transformers' model, where it is the reference."""


def make_zoo_model(
    path: Path, name: str, dtype: str = "float32", std: float = 0.3, **fields: Any
) -> ZooModel:
    """Writes the checkpoint; std: of its weights; fields: of transformers' config, beside those of the entry.

    At 0.3 greedy output wanders instead of repeating one token, but rounding is amplified from layer to layer; at 0.1
    what is computed in bfloat16 stays within 2 % of the float32 logits.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if name in OWN_REFERENCES:
        return OWN_REFERENCES[name](path, dtype, std)
    entry = ZOO[name]
    given = {name: value for name, value in {**BASE, **entry.fields, **fields}.items() if value is not None}
    given |= dict.fromkeys(entry.nulls)
    config = AutoConfig.for_model(entry.model_type, **copy.deepcopy(given))  # it writes into what it is given
    config.tie_word_embeddings = given.get("tie_word_embeddings", config.tie_word_embeddings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    randomise(model, getattr(torch, dtype), std)
    config.architectures, config.dtype = [type(model).__name__], getattr(torch, dtype)
    raw = json.loads(config.to_json_string(use_diff=False))
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if entry.repack is not None:
        tensors, raw = entry.repack(tensors, raw)
    raw["architectures"] = [entry.architecture]
    write_checkpoint(path, tensors, raw, entry.weight_format)

    @functools.cache
    def rounded() -> Any:
        return in_dtype(model, getattr(torch, dtype))

    @torch.inference_mode()
    def logits(computed: Any, token_ids: list[int]) -> torch.Tensor:
        return computed.eval()(torch.tensor([token_ids])).logits[0].float()

    return ZooModel(
        path, lambda ids: logits(model, ids), lambda ids: logits(rounded(), ids), entry.max_len, model
    )


def in_dtype(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy with parameters of `dtype`, as `from_pretrained` makes it: what is no parameter, such as the frequencies of
    rotary positions, stays in float32."""
    copied = copy.deepcopy(model)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(dtype)
    return copied


def randomise(model: torch.nn.Module, dtype: torch.dtype, std: float) -> None:
    """Norms lie near their usual weights; all is rounded to what `dtype` can hold, while the model stays in float32."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        biases = [item for item in model.named_buffers() if item[0].endswith("e_score_correction_bias")]
        for name, parameter in [*model.named_parameters(), *biases]:
            parameter.normal_(std=0.1 if parameter.dim() == 1 or "norm" in name else std, generator=generator)
            is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
            if is_norm and "Gemma" not in type(model).__name__:  # Gemma's are what is added to 1
                parameter += 1.0
            parameter.copy_(parameter.to(dtype))


def calm(model: torch.nn.Module) -> None:
    """Of a Gemma whose head is its embedding: smaller embeddings, which it multiplies by the root of its hidden size. Else each
    token is followed by itself, whatever stands before it."""
    if "Gemma" in type(model).__name__ and model.config.tie_word_embeddings:
        model.get_input_embeddings().weight.data /= 8


def write_checkpoint(
    path: Path, tensors: Tensors, raw: Config, weight_format: str = "safetensors", tokenizer: bool = True
) -> None:
    """tokenizer: a small one of `VOCAB` tokens is written too."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw))
    (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    if weight_format == "bin":
        torch.save(tensors, path / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        halves = [names[::2], names[1::2]]  # neighbours in different files
        weight_map = {}
        for number, part in enumerate(halves, 1):
            file = f"model-{number:05d}-of-{len(halves):05d}.safetensors"
            save_file({name: tensors[name] for name in part}, path / file)
            weight_map.update(dict.fromkeys(part, file))
        (path / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    if tokenizer:
        write_tokenizer(path, VOCAB)


def qwen_beyond(path: Path, dtype: str, std: float) -> ZooModel:
    """Trained with 24 tokens, served with 200: queries grow with log n, theta is stretched by 2^(ceil(log2(200 / 24)) + 1) - 1."""
    from models.references import qwen

    make_zoo_model(path, "qwen", dtype, std)
    raw = {**json.loads((path / "config.json").read_text()), "seq_length": 24}
    (path / "config.json").write_text(json.dumps(raw))
    weights = read_tensors(path)
    return plain_model(path, dtype, lambda ids: qwen.logits(raw, weights, ids, alpha=31.0), max_len=200)


def plain_model(
    path: Path, dtype: str, reference: Callable[[list[int]], torch.Tensor], max_len: int | None = None
) -> ZooModel:
    """reference: in plain torch and float32."""

    def half(token_ids: list[int]) -> torch.Tensor:
        with RoundedResults(getattr(torch, dtype)):
            return reference(token_ids)

    return ZooModel(path, reference, half, max_len)


class RoundedResults(TorchFunctionMode):
    """What a float32 reference computes from activations is rounded to a dtype, operation by operation; positions are not."""

    ROUNDED = {"matmul", "__matmul__", "einsum", "add", "sub", "mul", "div", "softmax", "sigmoid"}

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        rounds = func.__name__ in self.ROUNDED and result.dtype == torch.float32
        return result.to(self.dtype).float() if rounds else result


def phi3_small(path: Path, dtype: str, std: float) -> ZooModel:
    from models.references import phi3_small

    hidden, inner, heads, kv_heads = 64, 96, 8, 4
    raw = {
        "architectures": ["Phi3SmallForCausalLM"], "model_type": "phi3small", "torch_dtype": dtype,
        "hidden_size": hidden, "ff_intermediate_size": inner, "num_hidden_layers": 4, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": VOCAB, "max_position_embeddings": 256, "hidden_act": "gegelu",
        "gegelu_limit": 3.0, "gegelu_pad_to_256": True, "layer_norm_epsilon": 1e-5, "rope_embedding_base": 1000000,
        "rope_position_scale": 1.0, "mup_use_scaling": True, "mup_attn_multiplier": 1.0, "mup_width_multiplier": 2.0,
        "mup_embedding_multiplier": 5.0, "blocksparse_block_size": 4, "blocksparse_num_local_blocks": 3,
        "blocksparse_vert_stride": 4, "blocksparse_homo_head_pattern": False, "dense_attention_every_n_layers": 2,
        "blocksparse_triton_kernel_block_size": 4, "dummy_token_indices": [381, 382], "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (std if len(shape) > 1 else 0.1)

    tensors = {"model.embed_tokens.weight": random(VOCAB, hidden)}
    tensors |= {
        "model.final_layernorm.weight": 1 + random(hidden),
        "model.final_layernorm.bias": random(hidden),
    }
    for layer in range(4):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (
            ("self_attn.query_key_value", (heads + 2 * kv_heads) * 8, hidden), ("self_attn.dense", hidden, hidden),
            ("mlp.up_proj", 2 * inner, hidden), ("mlp.down_proj", hidden, inner),
        ):  # fmt: skip
            tensors |= {f"{prefix}{name}.weight": random(rows, columns), f"{prefix}{name}.bias": random(rows)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors |= {f"{prefix}{name}.weight": 1 + random(hidden), f"{prefix}{name}.bias": random(hidden)}
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    write_checkpoint(path, tensors, raw)
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    return plain_model(path, dtype, lambda ids: phi3_small.logits(raw, weights, ids))


def read_tensors(path: Path) -> Tensors:
    tensors: Tensors = {}
    for file in path.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: tensor.float() for name, tensor in tensors.items()}


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + 0.01 * i for i in range(8)],
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
}  # fmt: skip

DEEPSEEK = {
    "head_dim": 8, "num_key_value_heads": 4, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 12, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "n_shared_experts": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "routed_scaling_factor": 1.5,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.707, "mscale_all_dim": 0.9,
    },
}  # fmt: skip
OLD = {"head_dim": None, "num_key_value_heads": None, "intermediate_size": None}
ZOO: dict[str, Entry] = {
    "llama": Entry("LlamaForCausalLM", "llama", {}),
    "qwen2": Entry("Qwen2ForCausalLM", "qwen2", {}),
    "qwen2, window": Entry(
        "Qwen2ForCausalLM", "qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    ),
    "qwen3": Entry("Qwen3ForCausalLM", "qwen3", {}),
    "mistral": Entry("MistralForCausalLM", "mistral", {"sliding_window": 16}),
    "granite": Entry("GraniteForCausalLM", "granite", {
        "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.1, "logits_scaling": 4.0,
        "tie_word_embeddings": True,
    }),
    "olmo2": Entry("Olmo2ForCausalLM", "olmo2", {}),
    "internlm": Entry(
        "InternLMForCausalLM", "llama", {"attention_bias": True, "num_key_value_heads": 4}, to_internlm, "bin"
    ),
    "internlm2": Entry("InternLM2ForCausalLM", "llama", {}, to_internlm2),
    "minicpm": Entry("MiniCPMForCausalLM", "granite", {
        "embedding_multiplier": 12, "residual_multiplier": 1.4 / 3**0.5, "attention_multiplier": 0.25,
        "logits_scaling": 64 / 16, "tie_word_embeddings": True, "head_dim": 16,
    }, to_minicpm, "bin"),
    "phi3": Entry("Phi3ForCausalLM", "phi3", {"sliding_window": 16}),
    "phi3, short": Entry("Phi3ForCausalLM", "phi3", {
        "rope_parameters": LONGROPE, "original_max_position_embeddings": 256, "max_position_embeddings": 1024,
    }),
    "phi3, long": Entry("Phi3ForCausalLM", "phi3", {
        "rope_parameters": LONGROPE, "original_max_position_embeddings": 32, "max_position_embeddings": 1024,
    }, max_len=200),
    "gemma2": Entry("Gemma2ForCausalLM", "gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 20}),
    "gemma3": Entry("Gemma3ForCausalLM", "gemma3_text", {
        "sliding_window": 16, "query_pre_attn_scalar": 20, "num_hidden_layers": 7,
    }),
    "cohere": Entry("CohereForCausalLM", "cohere", {}),
    "cohere, qk norm": Entry("CohereForCausalLM", "cohere", {"use_qk_norm": True}),
    "stablelm": Entry("StableLmForCausalLM", "stablelm", {"use_qkv_bias": True, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
    }}),
    "stablelm, parallel": Entry("StableLmForCausalLM", "stablelm", {
        "use_parallel_residual": True, "qk_layernorm": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    }),
    "glm": Entry("GlmForCausalLM", "glm", {}),
    "glm4": Entry("Glm4ForCausalLM", "glm4", {}),
    "bloom": Entry("BloomForCausalLM", "bloom", {**OLD, "n_head": 6, "hidden_size": 96}, without_prefix, "bin"),
    "bloom, prefixed": Entry("BloomForCausalLM", "bloom", {**OLD}),
    "starcoder": Entry("GPTBigCodeForCausalLM", "gpt_bigcode", {**OLD, "n_inner": 96}, None, "bin"),
    "starcoder, many heads": Entry("GPTBigCodeForCausalLM", "gpt_bigcode", {**OLD, "multi_query": False}),
    "starcoder2": Entry("Starcoder2ForCausalLM", "starcoder2", {"sliding_window": 16}),
    "chatglm": Entry("ChatGLMModel", "glm", {"attention_bias": True}, to_chatglm, "bin"),
    "mixtral": Entry("MixtralForCausalLM", "mixtral", {"sliding_window": 16}, to_mixtral),
    "qwen3-moe": Entry("Qwen3MoeForCausalLM", "qwen3_moe", {
        "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "norm_topk_prob": True,
        "mlp_only_layers": [1],
    }, to_experts),
    "deepseek-v2": Entry("DeepseekV2ForCausalLM", "deepseek_v2", {
        **DEEPSEEK, "topk_method": "group_limited_greedy", "q_lora_rank": 24,
    }, to_experts),
    "deepseek-v2-lite": Entry(
        "DeepseekV2ForCausalLM", "deepseek_v2", {**DEEPSEEK, "n_group": 1, "topk_group": 1}, to_experts,
        nulls=("q_lora_rank",),
    ),
    "deepseek-v3": Entry("DeepseekV3ForCausalLM", "deepseek_v3", {**DEEPSEEK, "q_lora_rank": 24}, to_deepseek_v3),
    "gpt-oss": Entry("GptOssForCausalLM", "gpt_oss", {
        "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 16,
    }),
    "qwen": Entry("QWenLMHeadModel", "qwen2", {"num_key_value_heads": 4}, to_qwen),
}  # fmt: skip

OWN_REFERENCES: dict[str, Callable[[Path, str, float], ZooModel]] = {
    "qwen, beyond": qwen_beyond,
    "phi3-small": phi3_small,
}
"""What has a plain torch reference in `test/models/references/`."""

NAMES = [*ZOO, *OWN_REFERENCES]

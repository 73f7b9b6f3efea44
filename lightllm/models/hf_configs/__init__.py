"""How each architecture's config.json differs from Llama's: spelling, defaults, and what is fixed. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lightllm.model_folder.config import language_part, read_model_config, read_whole_config
from lightllm.models.config import ModelConfig, read_llama_like
from lightllm.models.config_fields import Fields
from lightllm.models.hf_configs import experts, gemma, layer_norm, like_llama, own_formats
from lightllm.models.hf_configs.vision_language import BIDIRECTIONAL, language_architecture, sees

DIALECTS: dict[str, Callable[[Fields, str], ModelConfig]] = {
    "Qwen2ForCausalLM": like_llama.qwen2,
    "Qwen3ForCausalLM": like_llama.qwen3,
    "MistralForCausalLM": like_llama.mistral,
    "GraniteForCausalLM": like_llama.granite,
    "Olmo2ForCausalLM": like_llama.olmo2,
    "InternLMForCausalLM": like_llama.internlm,
    "InternLM2ForCausalLM": like_llama.internlm2,
    "MiniCPMForCausalLM": like_llama.minicpm,
    "Phi3ForCausalLM": like_llama.phi3,
    "GlmForCausalLM": like_llama.glm,
    "Glm4ForCausalLM": like_llama.glm,
    "Gemma2ForCausalLM": gemma.gemma2,
    "Gemma3ForCausalLM": gemma.gemma3,
    "CohereForCausalLM": layer_norm.cohere,
    "StableLmForCausalLM": layer_norm.stablelm,
    "BloomForCausalLM": layer_norm.bloom,
    "GPTBigCodeForCausalLM": layer_norm.gpt_bigcode,
    "Starcoder2ForCausalLM": layer_norm.starcoder2,
    "Phi3SmallForCausalLM": layer_norm.phi3_small,
    "MixtralForCausalLM": experts.mixtral,
    "Qwen3MoeForCausalLM": experts.qwen3_moe,
    "DeepseekV2ForCausalLM": experts.deepseek_v2,
    "DeepseekV3ForCausalLM": experts.deepseek_v3,
    "GptOssForCausalLM": experts.gpt_oss,
    "ChatGLMModel": own_formats.chatglm,
    "QWenLMHeadModel": own_formats.qwen,
    "InternLM2ForRewardModel": like_llama.internlm2,
    "Qwen2ForRewardModel": like_llama.qwen2,
}
"""Architectures that are not in here have Llama's config.json."""


def load_config(model_dir: str) -> ModelConfig:
    """The shape of the language model that a model folder's config.json states. Raises `InvalidModel` that names the field."""
    whole = read_whole_config(model_dir)
    inner, raw, outer = language_part(whole), read_model_config(model_dir), {"architectures", "model_type"}
    if sees(whole) and whole.get("tie_word_embeddings") is not None:
        # transformers ties by the outer field, and writes the language model's default into the inner one.
        raw["tie_word_embeddings"] = whole["tie_word_embeddings"]
        outer.add("tie_word_embeddings")
    fields = Fields(raw)
    for name in sorted(inner.keys() & whole.keys() - outer):
        if None not in (inner[name], whole[name]) and inner[name] != whole[name]:
            fields.overrule(
                f"{name} {inner[name]!r} of the text_config is taken, {whole[name]!r} beside it is not"
            )
    config = _normalise(fields, language_architecture(whole, fields.overrule))
    bidirectional = whole.get("model_type") in BIDIRECTIONAL
    return dataclasses.replace(config, sees=sees(whole), bidirectional_images=bidirectional)


def normalise(raw: Mapping[str, Any], architecture: str) -> ModelConfig:
    """The shape from the content of a config.json; raises `InvalidModel` that names the field."""
    return _normalise(Fields(raw), architecture)


def _normalise(fields: Fields, architecture: str) -> ModelConfig:
    config = DIALECTS.get(architecture, read_llama_like)(fields, architecture)
    return dataclasses.replace(config, overruled=tuple(fields.overruled))

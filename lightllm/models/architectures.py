"""The supported architectures, without their code: importing this loads no torch.

The launch command refuses a model here, before any process starts; the registry loads what is named here; the table of
docs/models.md is made from it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.models.other_model_types import ENCODER_TYPES, OTHER_MODEL_TYPES


@dataclasses.dataclass(frozen=True)
class Architecture:
    module: str
    """In lightllm/models/; imported when needed. It holds a class named as the architecture."""
    model_type: str
    """For a config.json without `architectures`."""
    examples: str
    """Published checkpoints of it."""
    features: str
    """What it has beside Llama's pre-norm layers, rotary positions, grouped queries and gated MLP."""
    limits: str = ""
    reference: str = "transformers"
    """What it is compared with: transformers, or a file of test/models/references/."""
    class_name: str = ""
    """Of the class, where several architectures share one."""
    scores: bool = False
    """A reward model: it needs --use_reward_model, and gives scores instead of texts."""

    @property
    def module_name(self) -> str:
        return f"lightllm.models.{self.module}"


_LLAMA = "LlamaForCausalLM"

ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(
        "llama", "llama", "Llama 1, 2, 3.x; TinyLlama; Yi; DeepSeek LLM", "all rope types; biases"
    ),
    "MistralForCausalLM": Architecture(
        "llama", "mistral", "Mistral 7B, Mistral Nemo", "sliding window", class_name=_LLAMA
    ),
    "Qwen2ForCausalLM": Architecture(
        "llama", "qwen2", "Qwen2, Qwen2.5, QwQ", "biased q, k, v; sliding window", class_name=_LLAMA
    ),
    "Qwen3ForCausalLM": Architecture("qwen3", "qwen3", "Qwen3", "normalised q and k heads"),
    "GraniteForCausalLM": Architecture(
        "llama", "granite", "Granite 3.x", "scaled embedding, attention, residual, logits", class_name=_LLAMA
    ),
    "Olmo2ForCausalLM": Architecture(
        "olmo2", "olmo2", "OLMo 2", "norms after attention and MLP; whole q and k normalised"
    ),
    "InternLMForCausalLM": Architecture(
        "llama", "internlm", "InternLM-7B", "biased q, k, v, o; dynamic NTK", class_name=_LLAMA,
        reference="transformers' Llama",
    ),
    "InternLM2ForCausalLM": Architecture(
        "internlm2", "internlm2", "InternLM2, InternLM2.5", "fused, grouped q, k, v; dynamic NTK",
        reference="transformers' Llama",
    ),
    "MiniCPMForCausalLM": Architecture(
        "llama", "minicpm", "MiniCPM-1B, -2B", "scaled embedding, residual and logits", class_name=_LLAMA,
        reference="transformers' Granite",
    ),
    "Phi3ForCausalLM": Architecture(
        "phi3", "phi3", "Phi-3 mini and medium, Phi-3.5 mini, Phi-4", "fused q, k, v and gate, up; longrope; sliding window"
    ),
    "Phi3SmallForCausalLM": Architecture(
        "phi3_small", "phi3small", "Phi-3-small-8k and -128k", "block-sparse attention; gegelu; LayerNorm; fused, grouped q, k, v",
        limits="the tokenizer needs --trust_remote_code",
        reference="references/phi3_small.py",
    ),
    "Gemma2ForCausalLM": Architecture(
        "gemma", "gemma2", "Gemma 2", "four norms a layer; capped scores and logits; local and global layers; GeGLU"
    ),
    "Gemma3ForCausalLM": Architecture(
        "gemma", "gemma3_text", "Gemma 3 1B and other text models",
        "four norms a layer; normalised q and k heads; two thetas; local and global layers; GeGLU",
        class_name="Gemma2ForCausalLM",
    ),
    "CohereForCausalLM": Architecture(
        "cohere", "cohere", "Command-R, Command-R+, Aya 23",
        "attention beside MLP; LayerNorm; adjacent rotary pairs; scaled logits; a norm for each head",
    ),
    "StableLmForCausalLM": Architecture(
        "stablelm", "stablelm", "StableLM 3B, StableLM 2 1.6B and 12B",
        "LayerNorm; a quarter of each head rotated; attention beside MLP and a norm for each head (12B)",
    ),
    "GlmForCausalLM": Architecture(
        "glm4", "glm", "glm-4-9b-hf", "half of each head rotated in adjacent pairs; fused gate, up"
    ),
    "Glm4ForCausalLM": Architecture(
        "glm4", "glm4", "GLM-4-0414", "four norms a layer; half of each head rotated in adjacent pairs; fused gate, up"
    ),
    "BloomForCausalLM": Architecture(
        "bloom", "bloom", "BLOOM, BLOOMZ", "ALiBi; LayerNorm, also of the embedding; MLP without gate"
    ),
    "GPTBigCodeForCausalLM": Architecture(
        "gpt_bigcode", "gpt_bigcode", "StarCoder, gpt_bigcode-santacoder", "learned positions; one KV head; LayerNorm; MLP without gate"
    ),
    "Starcoder2ForCausalLM": Architecture(
        "starcoder2", "starcoder2", "StarCoder2", "LayerNorm; biases; MLP without gate; sliding window"
    ),
    "ChatGLMModel": Architecture(
        "chatglm", "chatglm", "ChatGLM2-6B, ChatGLM3-6B, glm-4-9b",
        "half of each head rotated in adjacent pairs; fused q, k, v and gate, up",
        limits="chatglm2-6b-32k (which divides positions by rope_ratio) is not told apart; "
        "glm-4-9b needs a tokenizer.json beside its tokenizer.model", reference="transformers' Glm",
    ),
    "QWenLMHeadModel": Architecture(
        "qwen", "qwen", "Qwen-1.8B, -7B, -14B", "fused q, k, v; dynamic NTK; logn attention",
        reference="transformers' Qwen2; beyond the trained context references/qwen.py",
    ),
    "MixtralForCausalLM": Architecture("mixtral", "mixtral", "Mixtral 8x7B, 8x22B", "experts; sliding window"),
    "Qwen3MoeForCausalLM": Architecture(
        "qwen3", "qwen3_moe", "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder", "experts; normalised q and k heads",
        class_name="Qwen3ForCausalLM",
    ),
    "DeepseekV2ForCausalLM": Architecture(
        "deepseek", "deepseek_v2", "DeepSeek-V2, -V2.5, -V2-Lite, Coder-V2",
        "latent attention; routed and shared experts, chosen by groups; yarn",
    ),
    "DeepseekV3ForCausalLM": Architecture(
        "deepseek", "deepseek_v3", "DeepSeek-V3, -V3.1 and -R1; Moonlight",
        "latent attention; routed and shared experts, chosen with a bias; yarn",
    ),
    "GptOssForCausalLM": Architecture(
        "gpt_oss", "gpt_oss", "gpt-oss-20b, -120b",
        "experts with a clamped SwiGLU; attention sinks; local and global layers; yarn",
    ),
    "InternLM2ForRewardModel": Architecture(
        "reward", "internlm2", "InternLM2-1.8B-reward, -7B, -20B", "a score: --use_reward_model and POST /get_score",
        reference="transformers' Llama", scores=True,
    ),
    "Qwen2ForRewardModel": Architecture(
        "reward", "qwen2", "Qwen2-Math-RM-72B, Qwen2.5-Math-RM-72B", "a score: --use_reward_model and POST /get_score",
        reference="transformers' Qwen2", scores=True,
    ),
}  # fmt: skip
"""`architectures` of a config.json -> what there is to know of it."""

_OTHER_NAMES = {"ChatGLMForConditionalGeneration": "ChatGLMModel"}
_OTHER_ENDS = ("TextForSequenceClassification", "ForSequenceClassification", "TextModel", "Model")
"""Of names of the same layers under another head than the language model's, or none."""


def is_without_output_head(name: str) -> bool:
    """Whether an architecture's name is that of the layers of a language model alone, or under a classification head."""
    return name not in ARCHITECTURES and _known_name(name) in ARCHITECTURES and name not in _OTHER_NAMES


def _known_name(name: str) -> str:
    """That of the language model with the same layers, if it is known; else the name."""
    if name in ARCHITECTURES:
        return name
    stems = (name.removesuffix(end) for end in _OTHER_ENDS if name.endswith(end))
    causal = next((f"{stem}ForCausalLM" for stem in stems if f"{stem}ForCausalLM" in ARCHITECTURES), name)
    return _OTHER_NAMES.get(name, causal)


def find_architecture(raw: Mapping[str, Any], overrule: Callable[[str], None] = lambda what: None) -> str:
    """The supported architecture that a config.json names; raises `InvalidModel` with the list of those there are.

    Where `architectures` and `model_type` differ, `model_type` decides, as in transformers; one that transformers does
    not know says nothing. overrule: is told what has no effect.
    """
    named = raw.get("architectures") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InvalidModel(f"architectures in config.json must be a list of names, got {named!r}.")
    supported = [name for name in map(_known_name, named) if name in ARCHITECTURES]
    kind = raw.get("model_type")
    of_kind = [name for name, known in ARCHITECTURES.items() if known.model_type == kind]
    if not named and of_kind:
        return of_kind[0]
    if not supported and kind in ENCODER_TYPES:
        raise InvalidModel(
            f"{', '.join(named) or kind} is an encoder: its tokens attend in both directions, which is not computed here.",
            "Embeddings and scores are made with decoder models, Qwen3-Embedding for example.",
        )
    if not supported:
        raise InvalidModel(
            f"Architecture {', '.join(named) or kind} is not supported.",
            f"Supported are: {', '.join(sorted(ARCHITECTURES))}.",
        )
    name = supported[0]
    if kind is None or ARCHITECTURES[name].model_type == kind:
        return name
    if of_kind:
        overrule(f"model_type {kind!r} is taken, architectures {name} is not")
        return of_kind[0]
    if kind in OTHER_MODEL_TYPES:
        raise InvalidModel(
            f"config.json: model_type {kind!r} is another model than architectures {name}, and not supported.",
            f"Where it is a {name}, its model_type must be {ARCHITECTURES[name].model_type!r}.",
        )
    overrule(f"model_type {kind!r} is not known: architectures {name} is taken")
    return name

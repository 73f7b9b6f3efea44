"""Of a published model that sees, the language model's shape follows from config.json, and its tensors have their usual names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightllm.errors import InvalidModel
from lightllm.model_folder.config import vocab_size
from lightllm.models.hf_configs import load_config
from lightllm.models.hf_configs.vision_language import language_name

MROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
AXES = (0,) * 16 + (1,) * 24 + (2,) * 24
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (the part of config.json that concerns the language model, fields of ModelConfig that must follow)
    "llava-hf/llava-1.5-7b-hf": (
        {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "tie_word_embeddings": False,
         "text_config": {"_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
                         "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
                         "torch_dtype": "float16", "vocab_size": 32064},
         "vision_config": {"hidden_size": 1024, "model_type": "clip_vision_model", "vocab_size": 32000}},
        {"architecture": "LlamaForCausalLM", "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "vocab_size": 32064,
         "max_position_embeddings": 4096, "intermediate_size": 11008, "norm_eps": 1e-05},
    ),
    "liuhaotian/llava-v1.5-13b": (
        {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava", "hidden_size": 5120, "vocab_size": 32000,
         "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40,
         "max_position_embeddings": 4096, "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
        {"architecture": "LlamaForCausalLM", "hidden_size": 5120, "num_layers": 40, "head_dim": 128},
    ),
    "Qwen/Qwen2-VL-7B-Instruct": (
        {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": 3584,
         "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
         "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
         "sliding_window": 32768, "tie_word_embeddings": False, "use_sliding_window": False, "rope_scaling": MROPE,
         "vision_config": {"depth": 32, "hidden_size": 3584}, "vocab_size": 152064},
        {"architecture": "Qwen2ForCausalLM", "qkv_bias": True, "head_dim": 128, "windows": (), "axes": AXES},
    ),
    "Qwen/Qwen3-VL-8B-Instruct": (
        {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl", "tie_word_embeddings": False,
         "text_config": {"hidden_size": 4096, "intermediate_size": 12288, "max_position_embeddings": 262144,
                         "model_type": "qwen3_vl_text", "num_attention_heads": 32, "num_hidden_layers": 36,
                         "num_key_value_heads": 8, "head_dim": 128, "rope_theta": 5000000, "vocab_size": 151936,
                         "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20],
                                          "rope_type": "default"}},
         "vision_config": {"deepstack_visual_indexes": [8, 16, 24], "out_hidden_size": 4096}},
        {"architecture": "Qwen3ForCausalLM", "num_layers": 36, "axes": (0, 1, 2) * 20 + (0,) * 4},
    ),
    "google/gemma-3-4b-it": (
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
         "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
                         "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                         "sliding_window": 1024},
         "vision_config": {"hidden_size": 1152, "num_attention_heads": 16}},
        {"architecture": "Gemma3ForCausalLM", "num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "vocab_size": 262208,
         "tie_word_embeddings": True},
    ),
    "OpenGVLab/InternVL2-2B": (
        {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
         "llm_config": {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_size": 2048,
                        "intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 24,
                        "num_key_value_heads": 8, "vocab_size": 92553, "max_position_embeddings": 32768,
                        "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1000000},
         "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24}},
        {"architecture": "InternLM2ForCausalLM", "num_layers": 24, "vocab_size": 92553},
    ),
}  # fmt: skip


def write(folder: Path, raw: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shape_of_the_language_model_follows_from_the_file(tmp_path: Path, name: str) -> None:
    raw, expected = PUBLISHED[name]
    config = load_config(write(tmp_path, raw))
    assert config.sees and not config.overruled
    for field, value in expected.items():
        assert (config.ropes[0].axes if field == "axes" else getattr(config, field)) == value, field
    assert vocab_size(str(tmp_path)) == config.vocab_size


def test_the_outer_field_says_whether_the_head_is_the_embedding(tmp_path: Path) -> None:
    raw, _ = PUBLISHED["llava-hf/llava-1.5-7b-hf"]
    inner = {**raw["text_config"], "tie_word_embeddings": False}
    assert load_config(
        write(tmp_path, {**raw, "text_config": inner, "tie_word_embeddings": True})
    ).tie_word_embeddings


def test_axes_of_qwen3_vl_take_turns_whether_or_not_the_file_says_so(tmp_path: Path) -> None:
    raw, expected = PUBLISHED["Qwen/Qwen3-VL-8B-Instruct"]
    rope = {"mrope_section": [24, 20, 20], "rope_type": "default"}
    inner = {**raw["text_config"], "rope_scaling": rope}
    assert load_config(write(tmp_path, {**raw, "text_config": inner})).ropes[0].axes == expected["axes"]


@pytest.mark.parametrize("sections", [[16, 24], [16, 24, 23], [16.0, 24, 24], "16", [-1, 41, 24]])
def test_sections_that_do_not_fit_the_head_are_refused(tmp_path: Path, sections: Any) -> None:
    raw, _ = PUBLISHED["Qwen/Qwen2-VL-7B-Instruct"]
    with pytest.raises(InvalidModel, match="mrope_section"):
        load_config(write(tmp_path, {**raw, "rope_scaling": {**MROPE, "mrope_section": sections}}))


def test_a_language_model_that_is_not_supported_is_named(tmp_path: Path) -> None:
    raw, _ = PUBLISHED["llava-hf/llava-1.5-7b-hf"]
    with pytest.raises(InvalidModel, match="gpt_neox"):
        load_config(write(tmp_path, {**raw, "text_config": {"model_type": "gpt_neox"}}))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("language_model.model.tok_embeddings.weight", "model.tok_embeddings.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("transformer.h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"),
        ("vision_tower.vision_model.embeddings.class_embedding", None),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight", None),
        ("model.mm_projector.0.weight", None),
        ("model.multi_modal_projector.linear_1.bias", None),
        ("multi_modal_projector.mm_soft_emb_norm.weight", None),
        ("visual.patch_embed.proj.weight", None),
        ("model.visual.merger.norm.weight", None),
        ("transformer.visual.attn_pool.query", None),
        ("vision_model.encoder.layers.0.ls1", None),
        ("mlp1.0.weight", None),
    ],
)
def test_tensors_of_the_language_model_have_the_names_of_one_alone(spelling: str, name: str | None) -> None:
    assert language_name(spelling) == name

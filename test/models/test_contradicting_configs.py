"""A config.json that says a thing twice, or leaves it out, means what transformers 5 takes it for; what was overruled is said."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from support.altered_checkpoints import ABSENT, edit_json, logits_of_transformers
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model
from support.near_tie import relative_error
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lightllm.errors import InvalidModel
from lightllm.models.architectures import ARCHITECTURES
from lightllm.models.hf_configs import load_config
from lightllm.models.other_model_types import OTHER_MODEL_TYPES
from lightllm.models.registry import load_model

PROMPT = [(17 * i + 3) % 380 for i in range(50)]
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [2.0 + i for i in range(8)],
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention", "full_attention"]

SAID: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # fact: (architecture, fields it is made with, what its config.json is given, words of the line at the start)
    "rope_scaling, rope_parameters": (
        "llama", {}, {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
        "rope_scaling",
    ),
    "rope_theta inside, beside": (
        "llama", {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}, "rope_theta": 5e5},
        "rope_theta 300.0 of rope_parameters",
    ),
    "rope_theta in rope_scaling, beside": (
        "qwen2", {}, {"rope_parameters": ABSENT, "rope_scaling": {**LINEAR, "rope_theta": 300.0}, "rope_theta": 5e5},
        "rope_theta 300.0 of rope_scaling",
    ),
    "partial_rotary_factor inside, beside": (
        "stablelm", {}, {"rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25},
        "partial_rotary_factor 0.5",
    ),
    "rope_type, type": (
        "llama", {}, {"rope_parameters": {**LINEAR, "type": "default", "rope_theta": 300.0}}, "rope_type 'linear'",
    ),
    "original_max_position_embeddings inside, beside": (
        "llama", {}, {"rope_parameters": {**YARN, "rope_theta": 300.0}, "original_max_position_embeddings": 16},
        "original_max_position_embeddings 16 is taken",
    ),
    "original_max_position_embeddings of Phi-3": (
        "phi3", {"sliding_window": None}, {
            "rope_parameters": {**LONGROPE, "rope_theta": 300.0, "original_max_position_embeddings": 64},
            "original_max_position_embeddings": 128, "max_position_embeddings": 512,
        }, "original_max_position_embeddings 128 is taken",
    ),
    "a rope field that nobody knows": (
        "llama", {}, {"rope_parameters": {**LINEAR, "rope_theta": 300.0, "zeta": 3}}, "zeta in rope_parameters has no effect",
    ),
    "sliding_window of an architecture without": ("llama", {}, {"sliding_window": 16}, "sliding_window has no effect"),
    "architectures, model_type": (
        "mistral", {"sliding_window": 16}, {"architectures": ["LlamaForCausalLM"]}, "model_type 'mistral' is taken",
    ),
    "dtype, torch_dtype": ("llama", {}, {"torch_dtype": "bfloat16"}, "dtype 'float32' is taken"),
}  # fmt: skip

SILENT: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # fact: a null or an absent key against the architecture's default, which is no contradiction
    "num_key_value_heads null": ("qwen3", {"num_key_value_heads": 4}, {"num_key_value_heads": None}),
    "num_key_value_heads absent": ("gemma2", {"num_key_value_heads": 4}, {"num_key_value_heads": ABSENT}),
    "num_key_value_heads absent, StarCoder2": ("starcoder2", {}, {"num_key_value_heads": ABSENT}),
    "head_dim absent": ("llama", {}, {"head_dim": ABSENT}),
    "head_dim against hidden_size / heads": ("qwen3", {"head_dim": 32}, {}),
    "head_dim absent, Qwen3-MoE": ("qwen3-moe", {}, {"head_dim": ABSENT}),
    "sliding_window null": ("mistral", {"sliding_window": 16}, {"sliding_window": None}),
    "original_max_position_embeddings beside only": (
        "llama", {}, {
            "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 300.0},
            "original_max_position_embeddings": 16,
        },
    ),
    "softcaps null": ("gemma2", {}, {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "rope_theta absent": ("cohere", {}, {"rope_parameters": ABSENT, "rope_theta": ABSENT}),
    "rope_parameters absent, gpt-oss": ("gpt-oss", {}, {"rope_parameters": ABSENT}),
    "rope_scaling empty": ("llama", {}, {"rope_scaling": {}}),
    "max_window_layers, Qwen3-MoE": (
        "qwen3-moe", {}, {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2},
    ),
}  # fmt: skip


def compare(
    folder: Path, name: str, fields: dict[str, Any], changes: dict[str, Any], caplog: Any
) -> list[str]:
    """The lines about an altered checkpoint, after its logits have been compared with transformers'."""
    made = make_zoo_model(folder, name, **fields)
    edit_json(folder / "config.json", **changes)
    with caplog.at_level(logging.INFO, "lightllm"):
        model = load_model(str(folder), data_type=None, device=torch.device("cpu"), max_len=made.max_len)
    served = ModelDriver(model).step([(0, PROMPT)])
    assert relative_error(served, logits_of_transformers(folder, PROMPT)) <= 1e-4
    return [record.getMessage() for record in caplog.records if record.name.startswith("lightllm")]


@pytest.mark.parametrize("fact", SAID)
def test_what_is_said_twice_is_what_transformers_takes_and_what_is_overruled_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fact: str
) -> None:
    *given, words = SAID[fact]
    (line,) = compare(tmp_path, *given, caplog)
    assert line.startswith("config.json: ") and words in line


@pytest.mark.parametrize("fact", SILENT)
def test_null_and_absent_mean_what_transformers_takes_them_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fact: str
) -> None:
    assert compare(tmp_path, *SILENT[fact], caplog) == []


BASE = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    def make(**fields: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps({**BASE, **fields}))
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        # Ministral 3 under Mistral's name, by its model_type or by what its rope says.
        ({"architectures": ["MistralForCausalLM"], "model_type": "ministral3"}, "model_type 'ministral3'"),
        ({"architectures": ["MistralForCausalLM"], "model_type": "mistral",
          "rope_parameters": {"rope_type": "yarn", "factor": 16.0, "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
        ({"model_type": "smollm3"}, "model_type 'smollm3'"),
        ({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3_next"}, "model_type 'qwen3_next'"),
        ({"architectures": ["Gemma3ForCausalLM"], "rope_parameters": {"rope_type": "linear", "factor": 8.0}},
         "full_attention and sliding_attention"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "without quantization_config"),
        # transformers either fails or computes a mask that fits no layer.
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 16, "layer_types": MIXED[1:]}, "layer_types contradicts"),
        ({"architectures": ["MixtralForCausalLM"], "sliding_window": None, "layer_types": MIXED[:2]}, "layer_types contradicts"),
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": None}, "need a sliding_window"),
        ({"architectures": ["GptOssForCausalLM"], "sliding_window": None, "layer_types": MIXED[:2]}, "need a sliding_window"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": MIXED[:2], "sliding_window": 16}, "use_sliding_window is false"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed_is_refused(folder: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModel) as refused:
        load_config(folder(**fields))
    assert words in f"{refused.value} {refused.value.remedy}"


def test_a_model_type_that_nobody_knows_leaves_it_to_architectures(folder: Any) -> None:
    config = load_config(folder(model_type="my_llama"))
    assert config.architecture == "LlamaForCausalLM" and "my_llama" in config.overruled[0]


def test_the_part_of_the_language_model_lies_over_the_rest(folder: Any) -> None:
    config = load_config(folder(tie_word_embeddings=False, text_config={"tie_word_embeddings": True}))
    assert config.tie_word_embeddings
    (line,) = config.overruled
    assert "tie_word_embeddings True of the text_config" in line


def test_every_text_model_of_transformers_is_supported_or_known_as_another() -> None:
    own = {known.model_type for known in ARCHITECTURES.values()}
    assert not OTHER_MODEL_TYPES & own
    assert MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - own <= OTHER_MODEL_TYPES


@pytest.mark.parametrize("value", [10_001, 10**9, 10**400])
@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("LlamaForCausalLM", "num_hidden_layers"),
        ("MistralForCausalLM", "num_hidden_layers"),
        ("Gemma3ForCausalLM", "num_hidden_layers"),
        ("BloomForCausalLM", "n_layer"),
        ("MixtralForCausalLM", "num_hidden_layers"),
        ("GptOssForCausalLM", "num_hidden_layers"),
    ],
)
def test_a_number_of_layers_that_no_model_has_is_refused_before_anything_is_made_of_it(
    folder: Any, architecture: str, name: str, value: int
) -> None:
    with pytest.raises(InvalidModel, match=f"{name} .* is more than the 10000"):
        load_config(folder(architectures=[architecture], sliding_window=8, **{name: value}))


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings"]
)
def test_other_absurd_sizes_are_refused(folder: Any, name: str) -> None:
    with pytest.raises(InvalidModel, match=f"{name} .* is more than the"):
        load_config(folder(**{name: 10**18}))


def test_absurd_numbers_of_experts_are_refused(folder: Any) -> None:
    with pytest.raises(InvalidModel, match="num_local_experts .* is more than the"):
        load_config(folder(architectures=["MixtralForCausalLM"], num_local_experts=10**9))

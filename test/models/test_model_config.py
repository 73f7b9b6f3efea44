"""One ModelConfig from every way a config.json may put it."""

import pytest

from lightllm.errors import InvalidModel
from lightllm.models.architectures import ARCHITECTURES, find_architecture
from lightllm.models.hf_configs import normalise
from lightllm.models.rope_config import RopeConfig

BASE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 100,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_what_is_not_said_is_what_transformers_assumes() -> None:
    config = normalise(BASE, "LlamaForCausalLM")
    assert (config.num_kv_heads, config.head_dim, config.norm_eps) == (8, 8, 1e-6)
    assert config.ropes == (RopeConfig(8, 10000.0, {"rope_type": "default"}),) and config.dtype is None
    assert not (config.tie_word_embeddings or config.qkv_bias or config.mlp_bias or config.windows)
    assert normalise({**BASE, "num_key_value_heads": None, "head_dim": None}, "LlamaForCausalLM") == config
    assert normalise({**BASE, "num_key_value_heads": 8}, "Qwen3ForCausalLM").head_dim == 128
    assert normalise({**BASE, "num_key_value_heads": 4}, "Gemma2ForCausalLM").tie_word_embeddings


def test_old_and_new_spellings_of_rope_mean_the_same() -> None:
    new = {**BASE, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    old = {**BASE, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    older = {**BASE, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    none = {**BASE, "rope_scaling": None, "rope_theta": 10000.0}
    assert normalise(new, "x") == normalise(old, "x") == normalise(older, "x")
    assert normalise(new, "x").ropes[0].theta == 5e5
    assert normalise(none, "x") == normalise(BASE, "x")


def test_old_and_new_spellings_of_two_ropes_mean_the_same() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = {**BASE, "head_dim": 16, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": linear}
    sliding = {"rope_type": "default", "rope_theta": 1e4}
    both = {"full_attention": {"rope_theta": 1e6, **linear}, "sliding_attention": sliding}
    new = {**BASE, "head_dim": 16, "rope_parameters": both}
    assert normalise(old, "Gemma3ForCausalLM") == normalise(new, "Gemma3ForCausalLM")
    assert [rope.theta for rope in normalise(new, "Gemma3ForCausalLM").ropes] == [1e6, 1e4]


def test_windows_of_layers_come_from_their_types_or_from_the_architecture() -> None:
    window = {**BASE, "num_key_value_heads": 8, "num_hidden_layers": 4, "sliding_window": 7}
    types = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    assert normalise(window, "LlamaForCausalLM").windows == ()
    assert normalise(window, "MistralForCausalLM").windows == (7, 7, 7, 7)
    assert normalise({**window, "sliding_window": None}, "MistralForCausalLM").windows == ()
    assert normalise(window, "Gemma2ForCausalLM").windows == (7, 0, 7, 0)
    assert normalise({**window, "sliding_window_pattern": 3}, "Gemma3ForCausalLM").windows == (7, 7, 0, 7)
    assert normalise({**window, "layer_types": types}, "Gemma2ForCausalLM").windows == (7, 0, 0, 7)
    assert normalise(window, "Qwen2ForCausalLM").windows == ()
    qwen = {**window, "use_sliding_window": True, "max_window_layers": 3}
    assert normalise(qwen, "Qwen2ForCausalLM").windows == (0, 0, 0, 7)


def test_dtype_may_have_its_old_name() -> None:
    assert normalise({**BASE, "torch_dtype": "float16"}, "x").dtype == "float16"
    assert normalise({**BASE, "dtype": "bfloat16"}, "x").dtype == "bfloat16"


def test_model_type_stands_in_for_architectures() -> None:
    assert find_architecture({"model_type": "qwen3"}) == "Qwen3ForCausalLM"
    assert find_architecture({"model_type": "x", "architectures": ["LlamaForCausalLM"]}) == "LlamaForCausalLM"
    assert find_architecture({"architectures": ["ChatGLMForConditionalGeneration"]}) == "ChatGLMModel"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_without_anything_names_what_it_lacks(architecture: str) -> None:
    with pytest.raises(
        InvalidModel,
        match="config.json lacks (hidden_size|n_emb|num_|n_layer|kv_channels|intermediate_size|ff_|kv_lora_rank)",
    ):
        normalise({}, architecture)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "two"}}, "factor"),
        (
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor",
        ),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"partial_rotary_factor": 1.5}, "head_dim"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": ["gptq"]}, "gptq"),
        ({"layer_types": ["full_attention"], "sliding_window": 4, "use_sliding_window": True}, "layer_types"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ],
)
def test_a_value_that_cannot_be_is_named(fields: dict, word: str) -> None:
    with pytest.raises(InvalidModel, match=word):
        normalise({**BASE, "num_key_value_heads": 8, **fields}, "Qwen2ForCausalLM")

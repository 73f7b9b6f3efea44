"""One ModelConfig from every way a config.json may put it."""

from lightllm.models.architectures import find_architecture
from lightllm.models.config import normalise

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
    assert (config.num_kv_heads, config.head_dim, config.rope_theta, config.rms_norm_eps) == (
        8,
        8,
        10000.0,
        1e-6,
    )
    assert config.rope_scaling == {"rope_type": "default"} and config.dtype is None
    assert not (config.tie_word_embeddings or config.attention_bias or config.mlp_bias)
    assert normalise({**BASE, "num_key_value_heads": None, "head_dim": None}, "LlamaForCausalLM") == config
    assert (
        normalise({**BASE, "model_type": "qwen3", "num_key_value_heads": 8}, "Qwen3ForCausalLM").head_dim
        == 128
    )


def test_old_and_new_spellings_of_rope_mean_the_same() -> None:
    new = {**BASE, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}
    old = {**BASE, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    older = {**BASE, "rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}}
    none = {**BASE, "rope_scaling": None, "rope_theta": 10000.0}
    assert normalise(new, "x") == normalise(old, "x") == normalise(older, "x")
    assert normalise(new, "x").rope_theta == 5e5
    assert normalise(none, "x") == normalise(BASE, "x")


def test_dtype_may_have_its_old_name() -> None:
    assert normalise({**BASE, "torch_dtype": "float16"}, "x").dtype == "float16"
    assert normalise({**BASE, "dtype": "bfloat16"}, "x").dtype == "bfloat16"


def test_model_type_stands_in_for_architectures() -> None:
    assert find_architecture({"model_type": "qwen3"}) == "Qwen3ForCausalLM"
    assert find_architecture({"model_type": "x", "architectures": ["LlamaForCausalLM"]}) == "LlamaForCausalLM"

"""A config.json with the fields and the spelling of published checkpoints leads to their shape."""

from __future__ import annotations

from typing import Any

import pytest

from lightllm.models.architectures import find_architecture
from lightllm.models.dialects import normalise
from lightllm.models.rope_config import RopeConfig

DEFAULT = {"rope_type": "default"}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (config.json, fields of ModelConfig that must follow)
    "bigscience/bloom-560m": (
        {
            "architectures": ["BloomForCausalLM"], "apply_residual_connection_post_layernorm": False, "bos_token_id": 1,
            "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True, "model_type": "bloom", "n_embed": 1024,
            "n_inner": None, "n_layer": 24, "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 1,
            "seq_length": 2048, "skip_bias_add": True, "vocab_size": 250880,
        },
        {"hidden_size": 1024, "num_layers": 24, "head_dim": 64, "intermediate_size": 4096, "tie_word_embeddings": True,
         "activation": "gelu_tanh", "ropes": ()},
    ),
    "bigcode/starcoder": (
        {
            "activation_function": "gelu", "architectures": ["GPTBigCodeForCausalLM"], "layer_norm_epsilon": 1e-05,
            "model_type": "gpt_bigcode", "multi_query": True, "n_embd": 6144, "n_head": 48, "n_inner": 24576,
            "n_layer": 40, "n_positions": 8192, "scale_attn_weights": True, "torch_dtype": "float32", "vocab_size": 49152,
        },
        {"num_kv_heads": 1, "head_dim": 128, "max_position_embeddings": 8192, "activation": "gelu",
         "attention_scale": 128**-0.5, "tie_word_embeddings": True},
    ),
    "Qwen/Qwen-7B-Chat": (
        {
            "architectures": ["QWenLMHeadModel"], "bf16": False, "emb_dropout_prob": 0.0, "hidden_size": 4096,
            "intermediate_size": 22016, "kv_channels": 128, "layer_norm_epsilon": 1e-06, "max_position_embeddings": 32768,
            "model_type": "qwen", "no_bias": True, "num_attention_heads": 32, "num_hidden_layers": 32,
            "rotary_emb_base": 10000, "rotary_pct": 1.0, "scale_attn_weights": True, "seq_length": 8192,
            "tie_word_embeddings": False, "use_dynamic_ntk": True, "use_flash_attn": "auto", "use_logn_attn": True,
            "vocab_size": 151936,
        },
        {"intermediate_size": 11008, "qkv_bias": True, "o_bias": False, "mlp_bias": False, "norm_eps": 1e-6, "ropes": (
            RopeConfig(128, 10000.0, {"rope_type": "qwen_dynamic", "original_max_position_embeddings": 8192.0}),
        )},
    ),
    "THUDM/chatglm3-6b": (
        {
            "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
            "apply_query_key_layer_scaling": True, "apply_residual_connection_post_layernorm": False,
            "attention_softmax_in_fp32": True, "ffn_hidden_size": 13696, "fp32_residual_connection": False,
            "hidden_size": 4096, "kv_channels": 128, "layernorm_epsilon": 1e-05, "multi_query_attention": True,
            "multi_query_group_num": 2, "num_attention_heads": 32, "num_layers": 28, "original_rope": True,
            "padded_vocab_size": 65024, "post_layer_norm": True, "rmsnorm": True, "seq_length": 8192, "use_cache": True,
            "torch_dtype": "float16", "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
        },
        {"num_layers": 28, "num_kv_heads": 2, "head_dim": 128, "intermediate_size": 13696, "vocab_size": 65024,
         "qkv_bias": True, "ropes": (RopeConfig(64, 10000.0, DEFAULT, interleaved=True),), "dtype": "float16"},
    ),
    "internlm/internlm2-chat-7b": (
        {
            "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "eager", "bias": False, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "internlm2",
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
            "rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1000000, "tie_word_embeddings": False,
            "torch_dtype": "bfloat16", "vocab_size": 92544,
        },
        {"num_kv_heads": 8, "qkv_bias": False, "ropes": (RopeConfig(128, 1e6, {
            "rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 32768,
        }),)},
    ),
    "internlm/internlm-chat-7b": (
        {
            "architectures": ["InternLMForCausalLM"], "bias": True, "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 11008, "max_position_embeddings": 2048, "model_type": "internlm",
            "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-06, "rotary": {"base": 10000,
            "type": "dynamic"}, "tie_word_embeddings": False, "torch_dtype": "float16", "vocab_size": 103168,
        },
        {"qkv_bias": True, "o_bias": True, "mlp_bias": False, "num_kv_heads": 32},
    ),
    "openbmb/MiniCPM-2B-sft-bf16": (
        {
            "architectures": ["MiniCPMForCausalLM"], "hidden_act": "silu", "hidden_size": 2304, "intermediate_size": 5760,
            "max_position_embeddings": 4096, "num_attention_heads": 36, "num_hidden_layers": 40, "num_key_value_heads": 36,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "torch_dtype": "bfloat16", "vocab_size": 122753, "scale_emb": 12,
            "dim_model_base": 256, "scale_depth": 1.4,
        },
        {"embedding_scale": 12, "logits_scale": 256 / 2304, "residual_scale": 1.4 / 40**0.5, "tie_word_embeddings": True},
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        {
            "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 3072,
            "intermediate_size": 8192, "max_position_embeddings": 4096, "model_type": "phi3", "num_attention_heads": 32,
            "num_hidden_layers": 32, "num_key_value_heads": 32, "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32064,
        },
        {"head_dim": 96, "windows": (2047,) * 32, "ropes": (RopeConfig(96, 10000.0, DEFAULT),)},
    ),
    "microsoft/Phi-3-small-8k-instruct": (
        {
            "architectures": ["Phi3SmallForCausalLM"], "blocksparse_block_size": 64, "blocksparse_homo_head_pattern": False,
            "blocksparse_num_local_blocks": 16, "blocksparse_triton_kernel_block_size": 64, "blocksparse_vert_stride": 8,
            "dense_attention_every_n_layers": 2, "dummy_token_indices": [100256, 100258], "ff_dim_multiplier": None,
            "ff_intermediate_size": 14336, "gegelu_limit": 20.0, "gegelu_pad_to_256": True, "hidden_act": "gegelu",
            "hidden_size": 4096, "layer_norm_epsilon": 1e-05, "max_position_embeddings": 8192, "model_type": "phi3small",
            "mup_attn_multiplier": 1.0, "mup_embedding_multiplier": 10.0, "mup_use_scaling": True,
            "mup_width_multiplier": 8.0, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
            "rope_embedding_base": 1000000, "rope_position_scale": 1.0, "rope_scaling": None, "torch_dtype": "bfloat16",
            "vocab_size": 100352,
        },
        {"attention_scale": 1 / 128, "embedding_scale": 10.0, "logits_scale": 1 / 8, "tie_word_embeddings": True,
         "intermediate_size": 14336, "ropes": (RopeConfig(128, 1e6, DEFAULT),)},
    ),
    "google/gemma-2-2b": (
        {
            "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
            "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "sliding_window": 4096, "torch_dtype": "float32", "vocab_size": 256000,
        },
        {"windows": (4096, 0) * 13, "attention_scale": 1 / 16, "logits_softcap": 30.0, "attention_softcap": 50.0,
         "embedding_scale": 48.0, "tie_word_embeddings": True, "activation": "gelu_tanh", "norm": "rms_norm_plus_one"},
    ),
    "google/gemma-3-1b-it": (
        {
            "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attn_logit_softcapping": None,
            "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
            "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
            "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512,
            "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "vocab_size": 262144,
        },
        {"windows": ((512,) * 5 + (0,)) * 4 + (512, 512), "logits_softcap": 0.0, "attention_softcap": 0.0,
         "ropes": (RopeConfig(256, 1e6, DEFAULT), RopeConfig(256, 1e4, DEFAULT))},
    ),
    "CohereForAI/c4ai-command-r-plus": (
        {
            "architectures": ["CohereForCausalLM"], "attention_bias": False, "hidden_act": "silu", "hidden_size": 12288,
            "intermediate_size": 33792, "layer_norm_eps": 1e-05, "logit_scale": 0.8333333333333334,
            "max_position_embeddings": 8192, "model_max_length": 131072, "model_type": "cohere", "num_attention_heads": 96,
            "num_hidden_layers": 64, "num_key_value_heads": 8, "rope_theta": 75000000.0, "torch_dtype": "float16",
            "use_qk_norm": True, "vocab_size": 256000,
        },
        {"norm": "layer_norm", "norm_bias": False, "logits_scale": 0.8333333333333334, "tie_word_embeddings": True,
         "ropes": (RopeConfig(128, 75000000.0, DEFAULT, interleaved=True),)},
    ),
    "stabilityai/stablelm-2-12b": (
        {
            "architectures": ["StableLmForCausalLM"], "hidden_act": "silu", "hidden_size": 5120, "intermediate_size": 13824,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "model_type": "stablelm", "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "partial_rotary_factor": 0.25, "qk_layernorm": True,
            "rope_scaling": None, "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "use_parallel_residual": True, "use_qkv_bias": False, "vocab_size": 100352,
        },
        {"head_dim": 160, "ropes": (RopeConfig(40, 10000.0, DEFAULT),), "norm_bias": True, "qkv_bias": False},
    ),
    "THUDM/GLM-4-9B-0414": (
        {
            "architectures": ["Glm4ForCausalLM"], "attention_bias": True, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 4096, "intermediate_size": 13696, "max_position_embeddings": 32768, "model_type": "glm4",
            "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2, "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "vocab_size": 151552,
        },
        {"ropes": (RopeConfig(64, 10000.0, DEFAULT, interleaved=True),), "qkv_bias": True, "o_bias": False},
    ),
    "Qwen/Qwen2.5-7B-Instruct": (
        {
            "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
            "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
            "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
            "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "use_sliding_window": False, "vocab_size": 152064,
        },
        {"windows": (), "qkv_bias": True, "o_bias": False, "head_dim": 128},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        {
            "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
            "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32768,
        },
        {"windows": (), "num_kv_heads": 8, "head_dim": 128},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shape_follows_from_the_file(name: str) -> None:
    raw, expected = PUBLISHED[name]
    config = normalise(raw, find_architecture(raw))
    for field, value in expected.items():
        assert getattr(config, field) == value, field

"""A config.json with the fields and the spelling of published checkpoints leads to their shape."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightllm.models.architectures import find_architecture
from lightllm.models.hf_configs import normalise
from lightllm.models.moe_config import ClampedSwiglu, MlaConfig, MoeConfig
from lightllm.models.rope_config import RopeConfig
from lightllm.ops.moe_routing_spec import MoeRoutingSpec

DEFAULT = {"rope_type": "default"}
YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
READ_YARN = {
    "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096.0, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip
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
    "mistralai/Mixtral-8x7B-v0.1": (
        {
            "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 4096,
            "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32,
            "num_experts_per_tok": 2, "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8,
            "output_router_logits": False, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
            "sliding_window": None, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 32000,
        },
        {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "windows": (), "ropes": (RopeConfig(128, 1e6, DEFAULT),),
         "norm_eps": 1e-5, "mla": None,
         "moe": MoeConfig(MoeRoutingSpec(8, 2, "softmax", normalise=True), 14336, (True,) * 32)},
    ),
    "Qwen/Qwen3-30B-A3B": (
        {
            "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "decoder_sparse_step": 1, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144, "max_position_embeddings": 40960,
            "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
            "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
            "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
            "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False, "vocab_size": 151936,
        },
        {"num_heads": 32, "num_kv_heads": 4, "head_dim": 128, "windows": (), "ropes": (RopeConfig(128, 1e6, DEFAULT),),
         "max_position_embeddings": 40960, "qkv_bias": False,
         "moe": MoeConfig(MoeRoutingSpec(128, 8, "softmax", normalise=True), 768, (True,) * 48)},
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        {
            "architectures": ["DeepseekV2ForCausalLM"], "attention_bias": False, "aux_loss_alpha": 0.001, "ep_size": 1,
            "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
            "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
            "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
            "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
            "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": None, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
            "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": True,
            "tie_word_embeddings": False, "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16",
            "v_head_dim": 128, "vocab_size": 102400,
        },
        {"num_heads": 16, "num_kv_heads": 1, "latent_dim": 576, "intermediate_size": 10944,
         "mla": MlaConfig(latent=512, rope=64, nope=128, value=128, query_latent=0),
         "moe": MoeConfig(MoeRoutingSpec(64, 6, "softmax"), 1408, (False,) + (True,) * 26, shared_width=2816),
         "attention_scale": (0.1 * 0.707 * math.log(40) + 1) ** 2 * 192**-0.5,
         "ropes": (RopeConfig(64, 10000.0, {**READ_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, interleaved=True),)},
    ),
    "deepseek-ai/DeepSeek-V3, in bf16": (
        {
            "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "ep_size": 1, "first_k_dense_replace": 3,
            "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512,
            "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
            "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
            "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
            "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
            "rms_norm_eps": 1e-06, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, "rope_theta": 10000,
            "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 4,
            "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
        },
        {"num_heads": 128, "num_kv_heads": 1, "latent_dim": 576, "extra": 1,
         "mla": MlaConfig(latent=512, rope=64, nope=128, value=128, query_latent=1536),
         "moe": MoeConfig(MoeRoutingSpec(256, 8, "sigmoid", normalise=True, groups=8, top_groups=4, scale=2.5),
                          2048, (False,) * 3 + (True,) * 58, shared_width=2048),
         "attention_scale": (0.1 * math.log(40) + 1) ** 2 * 192**-0.5,
         "ropes": (RopeConfig(64, 10000.0, {**READ_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}, interleaved=True),)},
    ),
    "openai/gpt-oss-20b, in bf16": (
        {
            "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
            "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
            "initial_context_length": 4096, "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 12, "max_position_embeddings": 131072,
            "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
            "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
            "rms_norm_eps": 1e-05, "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
                "rope_type": "yarn", "truncate": False,
            }, "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
            "tie_word_embeddings": False, "use_cache": True, "vocab_size": 201088,
        },
        {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "windows": (128, 0) * 12, "qkv_bias": True, "o_bias": True,
         "moe": MoeConfig(MoeRoutingSpec(32, 4, "top_k_softmax"), 2880, (True,) * 24), "extra": ClampedSwiglu(7.0, 1.702),
         "attention_scale": 1 / 8, "ropes": (RopeConfig(64, 150000.0, {
            "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False,
        }),)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_shape_follows_from_the_file(name: str) -> None:
    raw, expected = PUBLISHED[name]
    config = normalise(raw, find_architecture(raw))
    for field, value in expected.items():
        found = getattr(config, field)
        assert found == (pytest.approx(value) if isinstance(value, float) else value), field


@pytest.mark.parametrize(
    ("name", "quantization"),
    [
        (
            "deepseek-ai/DeepSeek-V3, in bf16",
            {"activation_scheme": "dynamic", "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        ),
        (
            "openai/gpt-oss-20b, in bf16",
            {
                "quant_method": "mxfp4",
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            },
        ),
    ],
)  # fmt: skip
def test_published_forms_in_fewer_bits_have_the_same_shape(name: str, quantization: dict[str, Any]) -> None:
    raw, expected = PUBLISHED[name]
    config = normalise({**raw, "quantization_config": quantization}, find_architecture(raw))
    assert config.quantization == quantization and config.num_layers == expected.get(
        "num_layers", config.num_layers
    )

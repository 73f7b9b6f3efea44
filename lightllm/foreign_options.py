"""Options by the names that other servers have for them: LightLLM's that differ here, vLLM's and SGLang's.

What LightLLM's launch commands give is accepted where it can be; a name of another server is answered with ours, because a
value that means nearly the same is not the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from lightllm.errors import InvalidOption

NOT_YET = {
    "run_mode": "normal", "dp": "1", "mtp_mode": None,
    "enable_multimodal_audio": False, "return_all_prompt_logprobs": False,
    "token_healing_mode": False, "first_token_constraint_mode": False,
    "mtp_draft_model_dir": None, "mtp_step": "0",
    "use_config_server_to_init_nccl": False, "config_server_host": None, "config_server_port": None,
    # since 1.2
    "kv_quant_calibration_config_path": None, "expert_dtype": None, "enable_rl": False,
    "enable_return_routed_experts": False, "hardware_platform": "cuda", "linear_att_ssm_data_type": "float32",
    "max_image_token_count": "8192", "visual_use_proxy_mode": False,
}  # fmt: skip
"""LightLLM options that change what the server does and are not built yet: anything but this value is an error."""

WITHOUT_EFFECT = {
    "zmq_mode": 1, "use_dynamic_prompt_cache": 0,
    "disable_custom_allreduce": 0, "enable_custom_allgather": 0, "enable_tpsp_mix_mode": 0, "enable_mps": 0,
    "enable_prefill_microbatch_overlap": 0, "enable_decode_microbatch_overlap": 0, "enable_flashinfer_prefill": 0,
    "enable_flashinfer_decode": 0, "enable_fa3": 0, "graph_max_len_in_batch": 1, "sampling_backend": 1,
    "health_monitor": 0, "diverse_mode": 0, "cache_reserved_ratio": 1,
    "pd_master_ip": 1, "pd_master_port": 1, "pd_decode_rpyc_port": 1, "multinode_httpmanager_port": 1,
    "multinode_router_gloo_port": 1, "dp_prefill_wait_step": 1,
    "visual_nccl_ports": -1, "vit_quant_type": 1, "vit_quant_cfg": 1,
    "ep_redundancy_expert_config_path": 1, "auto_update_redundancy_expert": 0,
    # LightLLM had these before 2025, and scripts still give them
    "simple_constraint_mode": 0, "splitfuse_mode": 0, "splitfuse_block_size": 1, "beam_mode": 0, "prompt_cache_strs": -1,
    "enable_chunked_prefill": 0, "static_quant": 0, "no_skipping_special_tokens": 0,
    "no_spaces_between_special_tokens": 0, "enable_custom_allreduce": 0, "disable_custom_allgather": 0,
    # since 1.2: caches below the KV memory, kernels, graphs and parts of several machines that are not here, and what is always on
    "enable_cpu_cache": 0, "cpu_cache_storage_size": 1, "cpu_cache_token_page_size": 1, "enable_disk_cache": 0,
    "disk_cache_storage_size": 1, "disk_cache_dir": 1, "enable_dp_prompt_cache_fetch": 0, "enable_prefill_cudagraph": 0,
    "prefill_cudagraph_max_handle_token": 1, "enable_prefill_decode_mixed": 0, "schedule_time_interval": 1,
    "penalty_counter_mode": 1, "enable_prompt_logprobs": 0, "detail_log": 0, "disable_shm_warning": 0, "hypercorn_config": 1,
    "dp_balancer": 1, "enable_dp_prefill_balance": 0, "enable_ep_moe": 0, "enable_fused_shared_experts": 0,
    "disable_symm_mem_allreduce": 0, "disable_flashinfer_allreduce": 0, "enable_torch_fallback": 0,
    "enable_triton_fallback": 0, "enable_torch_memory_saver": 0, "enable_weight_cpu_backup": 0,
    "llm_kv_quant_group_size": 1, "linear_att_hash_page_size": 1, "linear_att_page_block_num": 1, "linear_att_cache_size": 1,
    "disable_linear_att_small_page_cpu_cache": 0, "pd_master_mode": 1, "pd_trans_mode": 1, "pd_kv_page_num": 1,
    "pd_kv_page_size": 1, "select_p_d_node_strategy": 1, "config_server_visual_redis_port": 1, "visual_send_batch_size": 1,
    "visual_rpyc_port": 1, "vit_att_backend": -1, "disable_image_resize": 0, "enable_multimodal_url_cache": 0,
    "afs_image_embed_dir": 1, "afs_embed_capacity": 1, "disable_audio": 0, "audio_gpu_ids": -1, "audio_tp": 1, "audio_dp": 1,
    "audio_infer_batch_size": 1,
}  # fmt: skip
"""LightLLM options that are accepted and ignored with a warning: how many values they take (-1: any number)."""

TRANSLATED: dict[str, dict[str, Any]] = {
    "performance_mode": {"choices": ("personal",), "aliases": ("p_mode",), "ours": (
        "running_max_req_size", "batch_max_tokens", "chunked_prefill_size", "graph_max_batch_size")},
    "enable_profiling": {"choices": ("torch_profiler", "nvtx"), "ours": ("profile_dir", "enable_nvtx")},
    "llm_prefill_att_backend": {"nargs": "+", "ours": ("attention_backend",)},
    "llm_decode_att_backend": {"nargs": "+", "ours": ("attention_backend",)},
    "embed_cache_storage_size": {"type": float, "ours": ("cache_capacity_bytes",)},
    "mode": {"nargs": "*", "ours": ("llm_kv_type",)},
}  # fmt: skip
"""LightLLM options that mean what options of ours mean: how they are read, and which these are."""

KV_MODES = {
    "triton_int8kv": "int8kv", "ppl_int8kv": "int8kv", "ppl_int8kv_flashdecoding": "int8kv",
    "triton_int4kv": "int4kv", "ppl_int4kv": "int4kv", "ppl_int4kv_flashdecoding": "int4kv",
}  # fmt: skip
"""Words of LightLLM's `--mode` before 1.2, and the `--llm_kv_type` that they mean."""


def notes(given: Mapping[str, Any]) -> list[str]:
    """What the log says about translated options that are old, or mean nothing here."""
    words = given.get("mode", [])
    idle = [word for word in words if word not in KV_MODES]
    found = [f"--mode {word} is --llm_kv_type {KV_MODES[word]} now" for word in words if word in KV_MODES]
    return found + ([f"without effect in this server: --mode {' '.join(idle)}"] if idle else [])


def translate(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Our options, as those of `TRANSLATED` among the given ones would have them; ours, where they are given too, win.
    Raises `InvalidOption`."""
    ours: dict[str, Any] = {}
    if "performance_mode" in given:
        ours |= {
            "running_max_req_size": 6,
            "batch_max_tokens": 2048,
            "chunked_prefill_size": 1024,
            "graph_max_batch_size": 6,
        }
    if given.get("enable_profiling") == "torch_profiler":
        ours["profile_dir"] = environ.get("LIGHTLLM_TRACE_DIR") or "trace"
    elif "enable_profiling" in given:
        ours["enable_nvtx"] = True
    backends = [given.get(f"llm_{phase}_att_backend", ["auto"])[0] for phase in ("prefill", "decode")]
    if backends != ["auto", "auto"]:  # a second value is of layers that no model here has
        ours["attention_backend"] = ",".join("triton" if name == "auto" else name for name in backends)
    if kv_types := {KV_MODES[word] for word in given.get("mode", []) if word in KV_MODES}:
        if len(kv_types) > 1:
            raise InvalidOption(f"--mode {' '.join(given['mode'])}: KV memory can be of one kind only.")
        ours["llm_kv_type"] = kv_types.pop()
    if "embed_cache_storage_size" in given:
        size = int(given["embed_cache_storage_size"] * 2**30)
        if size < 1:
            raise InvalidOption("--embed_cache_storage_size must be more than 0.")
        ours["cache_capacity_bytes"] = size
    return ours


OUR_OPTIONS = {
    # vLLM
    "model": "model_dir", "served_model_name": "model_name", "dtype": "data_type", "tensor_parallel_size": "tp",
    "data_parallel_size": "dp", "max_model_len": "max_req_total_len", "gpu_memory_utilization": "mem_fraction",
    "max_num_seqs": "running_max_req_size", "max_num_batched_tokens": "batch_max_tokens",
    "long_prefill_token_threshold": "chunked_prefill_size", "enforce_eager": "disable_cudagraph",
    "no_enable_prefix_caching": "disable_dynamic_prompt_cache", "no_enable_chunked_prefill": "disable_chunked_prefill",
    "load_format": "load_way", "uvicorn_log_level": "log_level", "num_gpu_blocks_override": "max_total_token_num",
    "max_cudagraph_capture_size": "graph_max_batch_size", "master_addr": "nccl_host", "master_port": "nccl_port",
    "guided_decoding_backend": "output_constraint_mode", "api_server_count": "httpserver_workers",
    "scheduling_policy": "schedule_policy", "quantization": "quant_type",
    # SGLang
    "model_path": "model_dir", "tp_size": "tp", "dp_size": "dp", "context_length": "max_req_total_len",
    "mem_fraction_static": "mem_fraction", "max_running_requests": "running_max_req_size",
    "max_queued_requests": "max_waiting_requests", "max_total_tokens": "max_total_token_num",
    "max_prefill_tokens": "batch_max_tokens", "disable_radix_cache": "disable_dynamic_prompt_cache",
    "disable_cuda_graph": "disable_cudagraph", "cuda_graph_max_bs": "graph_max_batch_size",
    "grammar_backend": "output_constraint_mode", "dist_init_addr": "nccl_host", "watchdog_timeout": "round_timeout",
    "tokenizer_worker_num": "httpserver_workers",
    # TGI, llama.cpp
    "model_id": "model_dir", "hostname": "host", "num_shard": "tp", "max_input_tokens": "max_req_input_len",
    "max_input_length": "max_req_input_len", "max_batch_prefill_tokens": "batch_max_tokens",
    "ctx_size": "max_req_total_len", "threads": "cpu_threads", "alias": "model_name", "hf_repo": "model_dir",
    "parallel": "running_max_req_size", "batch_size": "batch_max_tokens", "ubatch_size": "chunked_prefill_size",
    "threads_http": "httpserver_workers", "timeout": "request_timeout", "n_predict": "default_max_tokens",
    "chat_template_file": "chat_template", "ssl_key_file": "ssl_keyfile", "ssl_cert_file": "ssl_certfile",
    "sse_ping_interval": "sse_keep_alive", "main_gpu": "device",
    # their short options
    "m": "model_dir", "c": "max_req_total_len", "t": "cpu_threads", "np": "running_max_req_size",
    "b": "batch_max_tokens", "ub": "chunked_prefill_size", "a": "model_name", "n": "default_max_tokens",
    # models for vectors
    "runner": "task", "convert": "task", "is_embedding": "task", "embedding": "task", "embeddings": "task",
    "reranking": "task",
    # what is seen of a server
    "enable_log_requests": "request_log", "log_requests": "request_log", "enable_log_outputs": "request_log_prompts",
    "otlp_endpoint": "otlp_traces_endpoint", "decode_log_interval": "log_stats_interval",
    "sse_keep_alive_interval": "sse_keep_alive",
}  # fmt: skip
"""Options of other servers, and ours for the same; all names with underscores."""

ANSWERS = {
    "seed": "Every request may carry its own seed.", "random_seed": "Every request may carry its own seed.",
    "enable_prefix_caching": "Leave it out: prefixes are shared anyway.",
    "disable_log_requests": "Leave it out: requests are logged with --request_log alone.",
    "enable_auto_tool_choice": "Leave it out: tool calls are parsed where a request has tools.",
    "enable_reasoning": "Leave it out: reasoning is told apart where the model marks it.",
    "disable_fastapi_docs": "Leave it out: with --api_key the docs need the key too.",
    "enable_metrics": "Leave it out: /metrics is always there.", "metrics": "Leave it out: /metrics is always there.",
    "enable_per_request_metrics": "Leave it out: a request asks for its own, with return_timings.",
    "collect_detailed_traces": "Leave it out: a span has queue, prefill and decode.",
    "jinja": "Leave it out: chat templates are always Jinja.", "cont_batching": "Leave it out: requests always run together.",
    "flash_attn": "Leave it out, or choose an --attention_backend.", "fa": "Leave it out, or choose an --attention_backend.",
    "n_gpu_layers": "Leave it out: a model is on the --device as a whole.", "ngl": "Leave it out: a model is on the --device as a whole.",
    "gpu_layers": "Leave it out: a model is on the --device as a whole.",
    "mlock": "Leave it out: weights are copied out of their files.", "no_mmap": "Leave it out: weights are copied out of their files.",
    "temp": "Every request may carry its own temperature.", "slots": "Leave it out: /token_load and /metrics say what runs.",
    "block_size": "Leave it out: memory is shared out by the token.", "page_size": "Leave it out: memory is shared out by the token.",
    "enable_prompt_tokens_details": "Leave it out: usage always has them.",
    "enable_force_include_usage": "A stream has its usage where the request asks for it: stream_options.",
    "pooler_config": "Leave it out: the model folder's modules.json and 1_Pooling/config.json say how vectors are pooled.",
    "pooling": "Leave it out: the model folder's modules.json and 1_Pooling/config.json say how vectors are pooled.",
    "hf_overrides": "Write it into the model folder's config.json.",
    "json_model_override_args": "Write it into the model folder's config.json.",
    "ssl_ca_certs": "Certificates of clients are left to a reverse proxy.",
}  # fmt: skip
"""Options of other servers that nothing here corresponds to, and what to do."""


def advice(
    name: str,
    known: Iterable[str],
    others: Mapping[str, str] = OUR_OPTIONS,
    prefix: str = "--",
    answers: Mapping[str, str] = ANSWERS,
) -> str:
    """What to write instead of a name that does not exist: a sentence, or "" if nothing is near.

    name: with underscores, without dashes; known: the names that do exist; others: names of other servers and ours for
    them; prefix: how a name is written there; answers: what to do where nothing here corresponds to a name.
    """
    if name in answers:
        return answers[name]
    if name in others:
        return f"Here it is {prefix}{others[name]}."
    near = difflib.get_close_matches(name, [*known, *others], n=1, cutoff=0.75)
    return f"Did you mean {prefix}{others.get(near[0], near[0])}?" if near else ""

"""Options by the names that other servers have for them: LightLLM's that differ here, vLLM's and SGLang's.

What LightLLM's launch commands give is accepted where it can be; a name of another server is answered with ours, because a
value that means nearly the same is not the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

NOT_YET = {
    "run_mode": "normal", "dp": "1", "quant_type": "none", "mtp_mode": None,
    "enable_multimodal_audio": False, "return_all_prompt_logprobs": False,
    "use_tgi_api": False, "token_healing_mode": False, "first_token_constraint_mode": False, "tool_call_parser": None,
    "quant_cfg": None, "mtp_draft_model_dir": None, "mtp_step": "0",
    "use_config_server_to_init_nccl": False, "config_server_host": None, "config_server_port": None,
}  # fmt: skip
"""LightLLM options that change what the server does and are not built yet: anything but this value is an error."""

WITHOUT_EFFECT = {
    "zmq_mode": 1, "use_dynamic_prompt_cache": 0,
    "disable_custom_allreduce": 0, "enable_custom_allgather": 0, "enable_tpsp_mix_mode": 0, "enable_mps": 0,
    "enable_prefill_microbatch_overlap": 0, "enable_decode_microbatch_overlap": 0, "enable_flashinfer_prefill": 0,
    "enable_flashinfer_decode": 0, "enable_fa3": 0, "graph_max_len_in_batch": 1, "sampling_backend": 1,
    "health_monitor": 0, "diverse_mode": 0, "mode": -1, "cache_reserved_ratio": 1,
    "pd_master_ip": 1, "pd_master_port": 1, "pd_decode_rpyc_port": 1, "multinode_httpmanager_port": 1,
    "multinode_router_gloo_port": 1, "dp_prefill_wait_step": 1,
    "visual_nccl_ports": -1, "vit_quant_type": 1, "vit_quant_cfg": 1,
    "ep_redundancy_expert_config_path": 1, "auto_update_redundancy_expert": 0,
    # LightLLM had these before 2025, and scripts still give them
    "simple_constraint_mode": 0, "splitfuse_mode": 0, "splitfuse_block_size": 1, "beam_mode": 0, "prompt_cache_strs": -1,
    "enable_chunked_prefill": 0, "static_quant": 0, "no_skipping_special_tokens": 0,
    "no_spaces_between_special_tokens": 0, "enable_custom_allreduce": 0, "disable_custom_allgather": 0,
}  # fmt: skip
"""LightLLM options that are accepted and ignored with a warning: how many values they take (-1: any number)."""

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
    "ctx_size": "max_req_total_len", "threads": "cpu_threads", "alias": "model_name",
}  # fmt: skip
"""Options of other servers, and ours for the same; all names with underscores."""

ANSWERS = {
    "seed": "Every request may carry its own seed.", "random_seed": "Every request may carry its own seed.",
    "enable_prefix_caching": "Leave it out: prefixes are shared anyway.",
    "disable_log_requests": "Leave it out: requests are not logged.",
    "disable_fastapi_docs": "Leave it out: with --api_key the docs need the key too.",
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

"""What servers tell of their load, each in its own words, for the beats of their workers."""

from __future__ import annotations

import dataclasses

from prometheus_client.parser import text_string_to_metric_families

from lightllm.cluster.workers.openai_server import OpenAIServer


@dataclasses.dataclass(frozen=True)
class Load:
    running: int
    waiting: int
    kv_use: float
    """0 to 1."""
    kv_tokens: int = 0
    """That its KV memory holds; 0: it does not say."""


async def lightllm_load(server: OpenAIServer) -> Load:
    """Raises `WorkerError`, or ValueError: it is no server of ours."""
    told = await server.get("/load")
    names = ("running", "waiting", "slots_used", "slots_total")
    if not isinstance(told, dict) or not all(isinstance(told.get(name), int) for name in names):
        raise ValueError("/load does not tell a load")
    running, waiting, used, total = (told[name] for name in names)
    return Load(running, waiting, min(1.0, used / max(1, total)), total)


async def vllm_load(server: OpenAIServer) -> Load:
    """Of its metrics, summed over engines; names of vLLM 0.6 to 0.11. Raises `WorkerError`."""
    values: dict[str, list[float]] = {}
    blocks: dict[str, str] = {}
    for family in text_string_to_metric_families(await server.get_text("/metrics")):
        values[family.name] = [sample.value for sample in family.samples]
        if family.name == "vllm:cache_config_info" and family.samples:
            blocks = family.samples[0].labels
    use = values.get("vllm:kv_cache_usage_perc") or values.get("vllm:gpu_cache_usage_perc") or [0.0]
    size, count = blocks.get("block_size", ""), blocks.get("num_gpu_blocks", "")
    tokens = int(size) * int(count) if size.isdigit() and count.isdigit() else 0
    running, waiting = (
        int(sum(values.get(f"vllm:num_requests_{each}", ()))) for each in ("running", "waiting")
    )
    return Load(running, waiting, min(1.0, max(use)), tokens)

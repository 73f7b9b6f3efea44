"""How many tokens a round computes: the Router plans by it, a Model Backend measures its memory with it."""

from __future__ import annotations

from lightllm.config import ServerConfig

GPU_CHUNK = 4096
CPU_ROUND = 512
DECODE_ROOM = 256


def round_sizes(config: ServerConfig, device: str, longest: int) -> tuple[int, int]:
    """(tokens of one request's prefill chunk, tokens of one round): given, or defaults for the device.

    Running streams wait for a round as a whole, so that on a CPU, where 512 tokens fill the cores, a round has no more;
    a GPU gets room for decode rows beside a full chunk. `longest`: tokens of the longest request.
    """
    if config.disable_chunked_prefill:
        batch = config.batch_max_tokens or longest
        return batch, batch
    on_cpu = device.startswith("cpu")
    chunk = config.chunked_prefill_size or (CPU_ROUND if on_cpu else GPU_CHUNK)
    if config.chunked_prefill_size is None and config.batch_max_tokens is not None:
        chunk = min(chunk, config.batch_max_tokens)
    room = max(chunk, CPU_ROUND) if on_cpu else chunk + max(DECODE_ROOM, chunk // 4)
    return chunk, config.batch_max_tokens or room

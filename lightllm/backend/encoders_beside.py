"""Vision encoders that share memory with this rank of the language model."""

from __future__ import annotations

from lightllm.config import ServerConfig
from lightllm.images.serving import encoder_gpus, serves_images
from lightllm.ipc.encoder_memory import EncoderMemory, wait_for_encoder_memory
from lightllm.ipc.runtime_dir import RuntimeDir


def encoders_beside(config: ServerConfig, runtime: RuntimeDir, gpu: int | None) -> EncoderMemory:
    """Of those on the GPU of this number, or (None) in the memory of the CPU, together; waits until they are loaded."""
    if not serves_images(config):
        return EncoderMemory()
    servers = range(config.visual_dp)
    beside = [server for server in servers if gpu is None or gpu in encoder_gpus(config, server)]
    return wait_for_encoder_memory(runtime, beside, config.startup_timeout)

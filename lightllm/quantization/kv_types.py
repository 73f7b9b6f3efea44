"""Which models can have KV memory of few bits (`--llm_kv_type`). Loads no torch."""

from __future__ import annotations

from lightllm.errors import InvalidOption


def check_kv_type(name: str, latent: bool, gpu: bool = False) -> None:
    """latent: the model keeps one latent vector a token. Raises `InvalidOption`."""
    if gpu and name in ("fp8kv", "int4kv"):
        raise InvalidOption(f"--llm_kv_type {name} is not built for GPUs yet.", "Take int8kv.")
    if latent and name != "None":
        raise InvalidOption(
            f"--llm_kv_type {name}: this model keeps latent vectors (multi-head latent attention), which stay as they are.",
            "Leave it out: a latent vector is small already.",
        )

"""LightLLM: a lightweight LLM inference and serving framework in pure Python with Triton kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightllm.llm import LLM
    from lightllm.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Lazy: `import lightllm` loads neither torch nor a tokenizer."""
    if name == "LLM":
        from lightllm.llm import LLM

        return LLM
    if name == "SamplingParams":
        from lightllm.sampling_params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'lightllm' has no attribute {name!r}")

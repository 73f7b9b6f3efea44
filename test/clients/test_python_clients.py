"""Clients and frameworks from PyPI, each with its script in `scripts/`, against real servers: `make test-clients`."""

from __future__ import annotations

import pytest
from support.unmodified_clients import Servers, needs_clients, run_file

pytestmark = needs_clients

SCRIPTS = (
    "with_openai", "with_anthropic", "with_ollama", "with_huggingface_hub", "with_text_generation", "with_requests", "with_litellm",
    "with_langchain", "with_instructor", "with_pydantic_ai", "with_llama_index", "with_semantic_kernel", "with_dspy",
    "with_outlines", "with_lm_eval",
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unmodified_client_works(servers: Servers, script: str) -> None:
    assert run_file(f"{script}.py", servers).endswith("done\n")

"""What servers and controllers tell Ollama's clients alike."""

from __future__ import annotations

from lightllm import __version__

OLLAMA_VERSION = "0.12.6"
"""The Ollama whose API ours is: clients refuse older ones."""
LOADED_UNTIL = "9999-12-31T23:59:59Z"
"""When Ollama would let go of the model: it stays."""


def version_answer() -> dict[str, str]:
    """Of `GET /api/version`: that version, and our own."""
    return {"version": OLLAMA_VERSION, "lightllm": __version__}

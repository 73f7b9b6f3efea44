"""How many tokens a model can attend to, and how many of them a request may have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightllm.model_folder.config import read_model_config, rope_parameters
from lightllm.model_folder.json_files import read_json_object

_LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length",
    "model_max_length", "max_seq_length",
)  # fmt: skip
_LARGEST_LENGTH = 10**8
"""Tokenizers write 1e30 for "no limit"."""
_DEFAULT_LENGTH = 2048
LONGEST_DEFAULT = 16384
"""Tokens: cap of the default of --max_req_total_len, whatever the model's context length."""


def longest_request(max_req_total_len: int | None, context_length: int) -> int:
    """Longest prompt + output in tokens: the option --max_req_total_len, else its default for a model."""
    return max_req_total_len or min(context_length, LONGEST_DEFAULT)


def context_length(model_dir: str) -> int:
    """Tokens that the model can attend to: what config.json states, extended by its rope scaling.

    linear and dynamic scaling multiply the stated length; yarn multiplies `original_max_position_embeddings`; for
    llama3 and longrope the stated length is the extended one already.
    """
    config = read_model_config(model_dir)
    stated = next((length for _, length in stated_lengths(config)), None)
    if stated is None:
        stated = _length(read_json_object(Path(model_dir) / "tokenizer_config.json").get("model_max_length"))
    if stated is None:
        logging.getLogger(__name__).warning(
            "%s states no context length: %d is assumed", model_dir, _DEFAULT_LENGTH
        )
        return _DEFAULT_LENGTH
    return _extended(stated, config)


def stated_lengths(config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Every context length that a config.json states, by its key; the first is the one that counts."""
    keys: tuple[str, ...] = _LENGTH_KEYS
    if config.get("model_type") == "qwen":
        # Qwen 1 states how far its rotation can be stretched, and as seq_length what it was trained with.
        keys = ("seq_length", *(key for key in keys if key not in ("seq_length", "max_position_embeddings")))
        keys = (*keys, "max_position_embeddings")
    lengths = [(key, _length(config.get(key))) for key in keys]
    return [(key, length) for key, length in lengths if length]


def _length(value: Any) -> int | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if number and 0 < value < _LARGEST_LENGTH else None


def _extended(stated: int, config: dict[str, Any]) -> int:
    scaling = rope_parameters(config.get)
    kind = scaling.get("rope_type") or scaling.get("type")
    factor = scaling.get("factor")
    if not isinstance(factor, (int, float)) or isinstance(factor, bool) or factor <= 1:
        return stated
    if kind in ("linear", "dynamic") and not str(config.get("model_type", "")).startswith("gemma3"):
        # Gemma 3 states the extended length although its scaling is linear.
        return int(stated * factor)
    if kind == "yarn":
        original = _length(scaling.get("original_max_position_embeddings")) or stated
        return max(stated, int(original * factor))
    return stated

"""What a model folder says about itself: architecture, context length, EOS ids, sampling defaults."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from lightllm.errors import InvalidModel, InvalidParameter
from lightllm.sampling_params import PARAMETERS, SamplingParams
from lightllm.tokenizer.json_files import read_json_object
from lightllm.tokenizer.model_folder import resolve_model_dir

__all__ = [
    "context_length",
    "eos_token_ids",
    "GENERATION_FIELDS",
    "generation_defaults",
    "language_part",
    "read_model_config",
    "read_whole_config",
    "resolve_model_dir",
    "stated_lengths",
    "vocab_size",
]

_LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length",
    "model_max_length", "max_seq_length",
)  # fmt: skip
_LARGEST_LENGTH = 10**8
"""Tokenizers write 1e30 for "no limit"."""
_DEFAULT_LENGTH = 2048
_OWN_DEFAULTS = SamplingParams()
GENERATION_FIELDS = [name for name, spec in PARAMETERS.items() if spec.in_generation_config]


def read_model_config(model_dir: str) -> dict[str, Any]:
    """`config.json`; the language model's part of it (`text_config`) lies over the outer keys.

    Raises `InvalidModel` if the file is missing or broken.
    """
    config = read_whole_config(model_dir)
    # null in the inner part does not hide a value of the outer one
    return {**config, **{name: value for name, value in language_part(config).items() if value is not None}}


def read_whole_config(model_dir: str) -> dict[str, Any]:
    """`config.json` as it is. Raises `InvalidModel` if the file is missing or broken."""
    config = read_json_object(Path(model_dir) / "config.json")
    if not config:
        raise InvalidModel(
            f"{model_dir} has no config.json, or an empty one.",
            "--model_dir must name a folder in Hugging Face format.",
        )
    return config


def language_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json holds of the language model alone, if it holds other models too; else {}."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            return config[key]
    return {}


def eos_token_ids(model_dir: str, override: list[int] | None = None) -> list[int]:
    """All ids that end a text: `override` (`--eos_id`), else generation_config.json, else config.json, else the
    tokenizer's own."""
    if override:
        return list(dict.fromkeys(override))
    folder = Path(model_dir)
    for path, config in (
        (folder / "generation_config.json", read_json_object(folder / "generation_config.json")),
        (folder / "config.json", read_model_config(model_dir)),
    ):
        ids = _ids(config.get("eos_token_id"), path)
        if ids and config.get("chat_format") == "chatml":
            # Qwen 1 names only <|endoftext|>; <|im_start|> and <|im_end|>, the next two, end a chat's answer.
            return [*ids, ids[0] + 1, ids[0] + 2]
        if ids:
            return ids
    if (own := _tokenizers_eos(folder)) is not None:
        return [own]
    logging.getLogger(__name__).warning("%s names no EOS token: texts end at their length limit", model_dir)
    return []


def generation_defaults(model_dir: str) -> dict[str, Any]:
    """Sampling defaults of generation_config.json, under the names of `SamplingParams`.

    Holds only what the file states; values that could not be served are left out with a warning.
    """
    path = Path(model_dir) / "generation_config.json"
    config = read_json_object(path)
    defaults: dict[str, Any] = {}
    for name in GENERATION_FIELDS:
        value = config.get(name)
        if value is None:
            continue
        kind, zero = type(getattr(_OWN_DEFAULTS, name)), PARAMETERS[name].zero_means
        if kind is not bool and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InvalidModel(f"{name} in {path} must be a number, got {value!r}.", "Correct the file.")
        value = kind(value)
        if value == 0 and zero is not None:
            value = zero
        try:
            msgspec.structs.replace(_OWN_DEFAULTS, **{name: value}).verify(native=True)
        except InvalidParameter as error:
            logging.getLogger(__name__).warning("ignoring %s of %s: %s", name, path, error)
            continue
        defaults[name] = value
    return defaults


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


def _tokenizers_eos(folder: Path) -> int | None:
    """The id of `eos_token` in tokenizer_config.json, as far as the folder's JSON files give it one."""
    settings = read_json_object(folder / "tokenizer_config.json")
    token = settings.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        return None
    for item in read_json_object(folder / "tokenizer.json").get("added_tokens") or []:
        if isinstance(item, dict) and item.get("content") == token and isinstance(item.get("id"), int):
            return item["id"]
    return None


def vocab_size(model_dir: str) -> int:
    """Rows of the model's embedding; token ids are below it. Raises `InvalidModel` if config.json does not say."""
    config = read_model_config(model_dir)
    size = config.get("vocab_size") or config.get("padded_vocab_size")
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise InvalidModel(f"{Path(model_dir) / 'config.json'} names no vocab_size.", "Correct the file.")
    return size


def _ids(value: Any, path: Path) -> list[int]:
    values = value if isinstance(value, list) else [value]
    ids = [v for v in values if v is not None]
    if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in ids):
        raise InvalidModel(
            f"eos_token_id in {path} must be a token id or a list of them, got {value!r}.",
            "Correct the file.",
        )
    return list(dict.fromkeys(ids))


def _length(value: Any) -> int | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if number and 0 < value < _LARGEST_LENGTH else None


def _extended(stated: int, config: dict[str, Any]) -> int:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        return stated
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

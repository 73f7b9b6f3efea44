"""config.json of a model folder, and what else of the folder says the same: EOS ids, vocabulary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.model_folder.json_files import read_json_object


def read_model_config(model_dir: str) -> dict[str, Any]:
    """`config.json`; the language model's part of it (`text_config`) lies over the outer keys, and what it leaves out is
    what transformers takes it for.

    Raises `InvalidModel` if the file is missing or broken.
    """
    config = read_whole_config(model_dir)
    # null in the inner part does not hide a value of the outer one
    inner = {name: value for name, value in language_part(config).items() if value is not None}
    return {**_LEFT_OUT.get(inner.get("model_type", ""), {}), **config, **inner}


_LEFT_OUT: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "gemma3_text": {
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "max_position_embeddings": 131072,
    },
}  # fmt: skip
"""`model_type` of a `text_config` -> defaults of transformers that published files (LLaVA-1.5, Gemma 3) do not state; a
config.json without such a part states everything."""


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


def rope_parameters(get: Callable[[str], Any]) -> dict[str, Any]:
    """The description of a rotary embedding as transformers 5 reads it: `rope_scaling`, its older name, if it holds anything, else
    `rope_parameters`; without nulls. An original length that stands beside it goes before the one inside.

    get: a field of config.json. Raises `InvalidModel` for a description that is no object."""
    found = {name: get(name) for name in ("rope_scaling", "rope_parameters")}
    for name, value in found.items():
        if not isinstance(value, dict | None):
            raise InvalidModel(f"config.json: {name} must be an object, got {value!r}.")
    taken = found["rope_scaling"] or found["rope_parameters"] or {}
    given = {name: value for name, value in taken.items() if value is not None}
    original = "original_max_position_embeddings"
    return given | {original: get(original)} if original in given and get(original) is not None else given


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

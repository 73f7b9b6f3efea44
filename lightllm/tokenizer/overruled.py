"""What the tokenizer's files, generation_config.json and config.json say differently: a line each, for the start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightllm.model_folder.chat_templates import overruled_templates
from lightllm.model_folder.config import eos_token_ids, read_model_config
from lightllm.model_folder.generation import GENERATION_FIELDS
from lightllm.model_folder.json_files import read_json_object
from lightllm.model_folder.lengths import context_length, stated_lengths
from lightllm.tokenizer.tokenizer import Tokenizer


def log_overruled(model_dir: str, tokenizer: Tokenizer, eos_id: list[int] | None) -> None:
    """eos_id: of the option `--eos_id`, which overrules without a word."""
    for line in overruled_lines(model_dir, tokenizer, eos_id):
        logging.getLogger(__name__).warning("%s", line)


def overruled_lines(model_dir: str, tokenizer: Tokenizer, eos_id: list[int] | None = None) -> list[str]:
    """For each thing that a file of the folder says and that has no effect. The rules: docs/models.md."""
    config, folder = read_model_config(model_dir), Path(model_dir)
    settings = read_json_object(folder / "tokenizer_config.json")
    return [
        *([] if eos_id else _eos(model_dir, config, tokenizer)),
        *_bos(settings, tokenizer),
        *_vocabulary(config, tokenizer),
        *_lengths(model_dir, config, settings),
        *overruled_templates(folder),
        *_generation(config),
    ]


def _eos(model_dir: str, config: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    ids, lines = eos_token_ids(model_dir), []
    stated = config.get("eos_token_id")
    others = [i for i in (stated if isinstance(stated, list) else [stated]) if i is not None and i not in ids]
    if others:
        lines.append(
            f"eos_token_id {ids} of generation_config.json is taken, {others} of config.json is not."
        )
    own = tokenizer.eos_token_id
    if own is not None and own not in ids and own not in others:
        name = tokenizer.special_tokens["eos_token"]
        lines.append(
            f"eos_token_id {ids} is taken, eos_token {name!r} ({own}) of tokenizer_config.json is not (--eos_id adds it)."
        )
    return lines


def _bos(settings: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    stated, bos = settings.get("add_bos_token"), tokenizer.bos_token_id
    if not isinstance(stated, bool) or bos is None:
        return []
    first = tokenizer.encode("a")[:1] == [bos]
    if first == stated:
        return []
    done = "puts BOS first" if first else "puts no BOS first"
    return [f"tokenizer.json {done} and is taken, add_bos_token {stated} of tokenizer_config.json is not."]


def _vocabulary(config: dict[str, Any], tokenizer: Tokenizer) -> list[str]:
    rows = config.get("vocab_size") or config.get("padded_vocab_size")
    if not isinstance(rows, int) or tokenizer.vocab_size <= rows:
        return []
    return [
        f"the tokenizer has {tokenizer.vocab_size} tokens, the model {rows}: prompts with an id from {rows} on are refused."
    ]


def _lengths(model_dir: str, config: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    stated, lines = stated_lengths(config), []
    for name, length in stated[1:]:
        if length != stated[0][1]:
            lines.append(f"config.json: {stated[0][0]} {stated[0][1]} is taken, {name} {length} is not.")
    own = settings.get("model_max_length")
    if stated and isinstance(own, int) and not isinstance(own, bool) and 0 < own < stated[0][1]:
        served = context_length(model_dir)
        lines.append(
            f"a context of {served} tokens (config.json) is taken, model_max_length {own} of tokenizer_config.json is not."
        )
    return lines


def _generation(config: dict[str, Any]) -> list[str]:
    names = [name for name in GENERATION_FIELDS if config.get(name) is not None]
    if not names:
        return []
    return [
        f"config.json: {', '.join(names)} has no effect: sampling defaults stand in generation_config.json."
    ]

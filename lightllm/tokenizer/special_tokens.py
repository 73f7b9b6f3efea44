"""Special tokens as `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` declare them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.model_folder.json_files import read_json_object

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")
_EXTRA_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token outside the model's merges; the flags are those of the `tokenizers` library."""

    content: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """What the configuration files say; the tokenizer file itself may know more."""

    named: dict[str, str]
    """`bos_token` and the like -> content."""
    extra: tuple[str, ...]
    """Special tokens without a name of their own."""
    added: dict[int, AddedToken]
    """Ids that `added_tokens_decoder` and `added_tokens.json` give to tokens."""
    add_bos: bool | None
    """Whether `encode` puts BOS first, for files that do not say it themselves (tokenizer.json does)."""
    add_eos: bool | None


def read_special_tokens(model_dir: Path) -> SpecialTokens:
    """Reads the three files; `tokenizer_config.json` wins where they differ."""
    config = read_json_object(model_dir / "tokenizer_config.json")
    token_map = read_json_object(model_dir / "special_tokens_map.json")
    stated = {name: _content(config.get(name)) or _content(token_map.get(name)) for name in NAMES}
    extra: dict[str, None] = {}
    for source in (config, token_map):
        for key in _EXTRA_LISTS:
            values = source.get(key) or []
            tokens = map(_content, values.values() if isinstance(values, dict) else values)
            extra |= dict.fromkeys(token for token in tokens if token)
    return SpecialTokens(
        named={name: token for name, token in stated.items() if token},
        extra=tuple(extra),
        added=_added_tokens(model_dir, config),
        add_bos=_flag(config, "add_bos_token"),
        add_eos=_flag(config, "add_eos_token"),
    )


def _content(value: Any) -> str | None:
    """A token is written as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _flag(config: dict[str, Any], name: str) -> bool | None:
    value = config.get(name)
    return value if isinstance(value, bool) else None


def _added_tokens(model_dir: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    added: dict[int, AddedToken] = {}
    for content, token_id in read_json_object(model_dir / "added_tokens.json").items():
        if isinstance(token_id, int):
            added[token_id] = AddedToken(content, special=False)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise InvalidModel(
            f"added_tokens_decoder in {model_dir / 'tokenizer_config.json'} must be an object.",
            "Correct the file.",
        )
    for key, value in decoder.items():
        text = _content(value)
        if text is None or not key.isdigit():
            continue
        flags = value if isinstance(value, dict) else {}
        added[int(key)] = AddedToken(text, **{name: bool(flags.get(name, False)) for name in _FLAGS})
    return added

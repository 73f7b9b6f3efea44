"""What the lists of modules in a `quantization_config` mean. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lightllm.errors import InvalidModel


def names_of(config: Any, *fields: str) -> list[str]:
    """Of the first of these fields that is there, a list of names; raises `InvalidModel` if it is none."""
    for field in fields:
        names = config.get(field)
        if names is None:
            continue
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidModel(f"config.json: {field} of quantization_config must be a list of names.")
        return names
    return []


def compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidModel(
            f"config.json: {pattern!r} in quantization_config is no regular expression: {error}."
        ) from error


class NotConverted:
    """`modules_to_not_convert`: a module's name, its beginning or its end, whole parts of it, or a regular expression that its
    beginning matches (transformers' `should_convert_module`; AutoAWQ and vLLM take parts of names)."""

    def __init__(self, names: Iterable[str]) -> None:
        self._parts = {f".{name.strip('.')}." for name in names}
        self._patterns = [compiled(rf"(?:{name})(?:(?<=\.)|(?=\.|$))") for name in names if "*" in name]

    def __contains__(self, names: Sequence[str]) -> bool:
        """names: of one module."""
        return any(
            any(part in f".{name}." for part in self._parts)
            or any(pattern.match(name) for pattern in self._patterns)
            for name in names
        )

"""Reads values out of a config.json and says which one is wrong. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm.errors import InvalidModel


class Fields:
    """A config.json. null counts as absent, as transformers has it."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = {name: value for name, value in raw.items() if value is not None}
        self._spelling: dict[str, str] = {}

    def spelt(self, **names: str) -> Fields:
        """The same file, in which e.g. `num_hidden_layers` may be called `n_layer` (`spelt(num_hidden_layers="n_layer")`)."""
        fields = Fields(self._raw)
        fields._spelling = {**self._spelling, **names}
        return fields

    def with_defaults(self, **values: Any) -> Fields:
        """The same file; what it leaves out has these values."""
        fields = Fields({**{name: v for name, v in values.items() if self.get(name) is None}, **self._raw})
        fields._spelling = dict(self._spelling)
        return fields

    def get(self, name: str, default: Any = None) -> Any:
        """Any value, unchecked."""
        return self._raw.get(self._name(name), default)

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if value is None:
            raise InvalidModel(f"config.json lacks {self._name(name)}.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidModel(f"config.json: {self._name(name)} must be a positive integer, got {value!r}.")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if value is None:
            raise InvalidModel(f"config.json lacks {self._name(name)}.")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InvalidModel(f"config.json: {self._name(name)} must be a number, got {value!r}.")
        return float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InvalidModel(f"config.json: {self._name(name)} must be true or false, got {value!r}.")
        return value

    def _name(self, name: str) -> str:
        spelling = self._spelling.get(name, name)
        return spelling if spelling in self._raw or name not in self._raw else name


def head_dim_of(fields: Fields) -> int:
    """`head_dim`, or an equal share of the hidden size."""
    default = max(1, fields.positive("hidden_size") // fields.positive("num_attention_heads"))
    return fields.positive("head_dim", default)

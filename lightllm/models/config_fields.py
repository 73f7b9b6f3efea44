"""Reads values out of a config.json and says which one is wrong. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightllm.errors import InvalidModel

_NULL_IS_NONE = frozenset({
    "sliding_window", "num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping", "q_lora_rank",
})  # fmt: skip
"""Fields in which null says "none", whatever the architecture's default is. In all others null counts as absent."""

_LARGEST = {"num_hidden_layers": 10_000, "num_experts": 100_000}
"""What loops and tuples are made of is bounded where it is read: before a wrong number takes memory."""
_LARGEST_OTHER = 2**31 - 1


class Fields:
    """A config.json, and what is to be said of it: where it says a thing twice, `overruled` gets a line."""

    def __init__(self, raw: Mapping[str, Any], overruled: list[str] | None = None) -> None:
        self._raw = dict(raw)
        self._defaults: dict[str, Any] = {}
        self._spelling: dict[str, str] = {}
        self.overruled: list[str] = [] if overruled is None else overruled
        """Shared by all that `spelt` and `with_defaults` make."""

    def spelt(self, **names: str) -> Fields:
        """The same file, in which e.g. `num_hidden_layers` may be called `n_layer` (`spelt(num_hidden_layers="n_layer")`)."""
        for name, spelling in names.items():
            self.one_of(spelling, name)
        return self._with({}, names)

    def with_defaults(self, **values: Any) -> Fields:
        """The same file; what it leaves out has these values."""
        return self._with({name: value for name, value in values.items() if self.get(name) is None}, {})

    def _with(self, defaults: Mapping[str, Any], spelling: Mapping[str, str]) -> Fields:
        fields = Fields(self._raw, self.overruled)
        fields._defaults = {**self._defaults, **defaults}
        fields._spelling = {**self._spelling, **spelling}
        return fields

    def get(self, name: str, default: Any = None) -> Any:
        """Any value, unchecked."""
        spelling = self._name(name)
        if self._raw.get(spelling) is not None:
            return self._raw[spelling]
        if spelling in self._raw and name in _NULL_IS_NONE:
            return default
        return self._defaults.get(spelling, self._defaults.get(name, default))

    def stated(self, name: str) -> Any:
        """The file's own value; None where it has none, whatever the default is."""
        return self._raw.get(self._name(name))

    def one_of(self, taken: str, other: str) -> Any:
        """The value of the field `taken`, else that of `other`; where the file states both, and differently, says so."""
        first, second = self._raw.get(taken), self._raw.get(other)
        if first is None:
            return second
        if second is not None and second != first:
            self.overrule(f"{taken} {first!r} is taken, {other} {second!r} is not")
        return first

    def overrule(self, what: str) -> None:
        """Of something that the file says and that has no effect."""
        line = f"config.json: {what}."
        if line not in self.overruled:
            self.overruled.append(line)

    def positive(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if value is None:
            raise InvalidModel(f"config.json lacks {self._name(name)}.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidModel(f"config.json: {self._name(name)} must be a positive integer, got {value!r}.")
        largest = _LARGEST.get(name, _LARGEST_OTHER)
        if value > largest:
            raise InvalidModel(
                f"config.json: {self._name(name)} {value} is more than the {largest} that are taken."
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if value is None:
            raise InvalidModel(f"config.json lacks {self._name(name)}.")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InvalidModel(f"config.json: {self._name(name)} must be a number, got {value!r}.")
        try:
            return float(value)
        except OverflowError as error:
            raise InvalidModel(f"config.json: {self._name(name)} is out of range.") from error

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise InvalidModel(f"config.json: {self._name(name)} must be true or false, got {value!r}.")
        return value

    def _name(self, name: str) -> str:
        spelling = self._spelling.get(name, name)
        return spelling if name not in self._raw or self._raw.get(spelling) is not None else name


def head_dim_of(fields: Fields) -> int:
    """`head_dim`, or an equal share of the hidden size."""
    default = max(1, fields.positive("hidden_size") // fields.positive("num_attention_heads"))
    return fields.positive("head_dim", default)

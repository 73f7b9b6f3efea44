"""What a sampling parameter declares of itself beside its type and default: `sampling_params.SamplingParams` holds one a field."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lightllm.errors import InvalidParameter

MAX_INT = 2**31 - 1
"""Of counts, positions and priorities: they are 32 bits wide somewhere on their way."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`. NaN is in no range."""

    low: float
    high: float = math.inf
    above: bool = False
    """Whether `low` itself is outside."""
    besides: float | None = None
    """One number more."""
    text: str = ""
    """What a client is told, with {name}, {value} and {at_most}; "" for the usual words."""
    below: str = ""
    """What it is told instead of numbers below `low`."""

    def holds(self, value: float) -> bool:
        inside = self.low < value if self.above else self.low <= value
        return inside and value <= self.high or value == self.besides

    def require(self, name: str, value: float, param: str) -> None:
        """Raises `InvalidParameter` that names the range. param: the field that the client is told of."""
        if self.holds(value):
            return
        text = (
            self.text
            or f"{{name}} must be in {'(' if self.above else '['}{self.low}, {self.high}], got {{value}}"
        )
        if self.below and not self.low <= value:
            text = self.below
        at_most = f" It is at most {MAX_INT}." if value > MAX_INT else ""
        raise InvalidParameter(
            text.format(name=name, value=shown(value), low=self.low, at_most=at_most), param=param
        )


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A sampling parameter. Its type says how it is read from JSON (`httpserver/reading/sampling_fields.py`)."""

    help: str = ""
    """For the table of docs/api.md."""
    values: str = ""
    """In that table; "": as `ranges` says."""
    shown_default: str | None = None
    """In that table, where it is not the default of `SamplingParams`."""
    description: str = ""
    """In the schema of /generate."""
    ranges: tuple[Range, ...] = ()
    """One, or one for each item of a tuple."""
    native_ranges: tuple[Range, ...] = ()
    """Where the native API has others."""
    native_least: float | None = None
    """The native API's lower bound, which is checked before all ranges."""
    native: str | None = ""
    """Name in `parameters` of /generate; "": the same; None: it is not there."""
    native_too: tuple[str, ...] = ()
    """More names that /generate takes."""
    openai: str | None = ""
    """Name on /v1; "": the same; None: it is not there."""
    elsewhere: tuple[str, ...] = ()
    """Names of other servers that neither API takes for it."""
    neutral: tuple[object, ...] = ()
    """Values that one API takes under the other's name, because they ask for what happens anyway."""
    foreign_name_refused: bool = True
    """Whether one API refuses the other's name; else it has no effect there."""
    zero_means: int | None = None
    """What 0 stands for on /v1 and in generation_config.json."""
    in_generation_config: bool = False
    """Whether the model's generation_config.json may give its default."""
    row_dtype: str = ""
    """The backend keeps it for each row in an array of this dtype, as it is."""


def shown(number: float | None) -> str:
    """A number in an error message, however many digits it has."""
    if isinstance(number, int) and number.bit_length() > 64:
        return f"an integer of {number.bit_length()} bits"
    return str(number)


def spec_of(annotation: Any) -> Parameter:
    """The `Parameter` of an annotated field."""
    return next(
        (part for part in getattr(annotation, "__metadata__", ()) if isinstance(part, Parameter)), Parameter()
    )

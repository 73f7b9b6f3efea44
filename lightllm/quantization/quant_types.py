"""What `--quant_type` may be: in how many bits weights of a dense checkpoint are kept. Loads no torch."""

from __future__ import annotations

import dataclasses

from lightllm.errors import InvalidOption
from lightllm.quantization.layout import WHOLE

_LEAST_GROUP = 16


@dataclasses.dataclass(frozen=True)
class QuantType:
    """See `rounding.py` for the formulas."""

    name: str
    element: str
    """Of a code: "int8", "int4" or "e4m3"."""
    group: int = WHOLE
    """Inputs that share a scale, `WHOLE`: all of an output."""
    zeros: bool = False
    """Each group has a zero of its own; otherwise 0 is in the middle of the codes."""
    coded_activations: bool = False
    """Made for int8 activations with a scale a token, where a device multiplies those faster."""

    @property
    def bits(self) -> int:
        return 4 if self.element == "int4" else 8

    def group_of(self, inputs: int) -> int:
        """Inputs that share a scale in a matrix with so many: halved until it divides them, so that each rank's border is one of a
        group as often as possible; where nothing divides them the last group is short."""
        group = self.group
        while group != WHOLE and group > _LEAST_GROUP and inputs % group:
            group //= 2
        return self.group if group != WHOLE and inputs % group else group


QUANT_TYPES = {
    one.name: one
    for one in (
        QuantType("w8a8", "int8", coded_activations=True),
        QuantType("w8a16", "int8", 128),
        QuantType("w4a16", "int4", 128, zeros=True),
        QuantType("w4a16-32", "int4", 32, zeros=True),
        QuantType("w4a16-64", "int4", 64, zeros=True),
        QuantType("w4a16-256", "int4", 256, zeros=True),
        QuantType("fp8", "e4m3"),
        QuantType("fp8-64", "e4m3", 64),
        QuantType("fp8-128", "e4m3", 128),
    )
}

ALSO_CALLED = {
    "no_quant": "none",
    "int8": "w8a16", "ao-w8a16": "w8a16", "ao-int8wo": "w8a16",
    "vllm-w8a8": "w8a8", "ao-w8a8": "w8a8",
    "int4": "w4a16", "ao-w4a16-128": "w4a16", "ao-int4wo-128": "w4a16", "ppl-w4a16-128": "w4a16",
    "ao-w4a16-32": "w4a16-32", "ao-int4wo-32": "w4a16-32", "ao-w4a16-64": "w4a16-64", "ao-int4wo-64": "w4a16-64",
    "ao-w4a16-256": "w4a16-256", "ao-int4wo-256": "w4a16-256",
    "fp8w8a8": "fp8", "fp8w8a8-pt": "fp8", "vllm-fp8w8a8": "fp8", "ao-fp8w8a16": "fp8",
    "fp8w8a8g64": "fp8-64", "fp8w8a8g128": "fp8-128", "fp8w8a8-b128": "fp8-128", "vllm-fp8w8a8-b128": "fp8-128",
    "triton-fp8w8a8-block128": "fp8-128", "deepgemm-fp8w8a8-b128": "fp8-128",
}  # fmt: skip
"""LightLLM's names (of 1.2 and before) and others', and ours with a scale for as many inputs or for fewer."""

PUBLISHED = ("awq", "awq_marlin")
"""LightLLM's names for a checkpoint that is quantised already, which is read without an option here."""


def quant_type(name: str, where: str = "--quant_type") -> QuantType | None:
    """None: "none". where: what the message begins with. Raises `InvalidOption`."""
    name = ALSO_CALLED.get(name, name)
    if name == "none":
        return None
    if name not in QUANT_TYPES:
        raise InvalidOption(f"{where} {name!r} is not known; none, {', '.join(QUANT_TYPES)} are.")
    return QUANT_TYPES[name]

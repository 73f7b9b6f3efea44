"""MXFP4 as gpt-oss is published: experts in floats of 4 bits (E2M1), 32 inputs share a power of two (OCP Microscaling 1.0).

    X_blocks   uint8 [experts, out, in / 32, 16], two inputs a byte, the first in its low bits
    X_scales   uint8 [experts, out, in / 32], 2^(scale - 127)

https://github.com/openai/gpt-oss, gpt_oss/torch/weights.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightllm.quantization.layout import Layout, Layouts
from lightllm.quantization.module_names import NotConverted, names_of

_LAYOUT = Layout("e2m1", 4, "_blocks", ("_scales",), 1, 32, word="uint8", exponents=True)


def layouts(config: Mapping[str, Any]) -> Layouts:
    skipped = NotConverted(names_of(config, "modules_to_not_convert"))

    def find(names: Sequence[str]) -> Layout | None:
        return None if names in skipped else _LAYOUT

    return find

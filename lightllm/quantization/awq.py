"""AWQ (arXiv 2306.00978) as AutoAWQ writes it in its version "gemm": 4 bits, groups of inputs, with zero points.

    X.qweight   int32 [in, out / 8], eight neighbouring outputs a word, in the order below
    X.qzeros    int32 [in / group, out / 8], likewise
    X.scales    float16 [in / group, out]

https://github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.quantization.layout import WHOLE, Layout, Layouts
from lightllm.quantization.module_names import NotConverted, names_of

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def layouts(config: Mapping[str, Any]) -> Layouts:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise InvalidModel(
            f"config.json: AWQ weights of version {version!r} are not supported, 'gemm' is.",
            "Take a copy of the model in that version, or in bfloat16.",
        )
    bits = config.get("bits", config.get("w_bit", 4))
    if bits != 4:
        raise InvalidModel(f"config.json: AWQ weights of {bits!r} bits are not supported, of 4 are.")
    group = config.get("group_size", config.get("q_group_size", 128))
    if type(group) is not int or group == 0 or group < -1:
        raise InvalidModel(
            f"config.json: group_size {group!r} of quantization_config is no number of inputs."
        )
    layout = Layout(
        "int", 4, ".qweight", (".scales",), 1, WHOLE if group == -1 else group, packed_outputs=True,
        inputs_first=True, order=_ORDER, zeros=".qzeros",
    )  # fmt: skip
    skipped = NotConverted(names_of(config, "modules_to_not_convert"))

    def find(names: Sequence[str]) -> Layout | None:
        return None if names in skipped else layout

    return find

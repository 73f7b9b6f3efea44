"""GPTQ (arXiv 2210.17323) as AutoGPTQ and GPTQModel write it, of 2, 3, 4 or 8 bits.

    X.qweight   int32 [in * bits / 32, out], neighbouring inputs from the lowest bits on, without gaps
    X.qzeros    int32 [in / group, out * bits / 32], neighbouring outputs likewise; "gptq_v2" keeps zeros, "gptq" zeros - 1,
                taken from all numbers of a word at once: a zero of 0 borrows from the next one (but for 3 bits)
    X.scales    float16 [in / group, out]
    X.g_idx     int32 [in], which group each input is of: in order, or with `desc_act` (act-order) any

https://github.com/ModelCloud/GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py; `dynamic`: gptqmodel/quantization/config.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.quantization.layout import WHOLE, Layout, Layouts
from lightllm.quantization.module_names import NotConverted, compiled, names_of

_ZEROS_ADDED = {"gptq": 1, "gptq_v2": 0}


def layouts(config: Mapping[str, Any]) -> Layouts:
    overrides = _overrides(config.get("dynamic") or {})
    whole = _layout(config, "")
    by_override = {
        pattern: None if own is None else _layout({**config, **own}, pattern.pattern)
        for pattern, own in overrides
    }
    skipped = NotConverted(names_of(config, "modules_to_not_convert"))

    def find(names: Sequence[str]) -> Layout | None:
        for pattern, layout in by_override.items():
            if any(pattern.match(name) for name in names):
                return layout
        return None if names in skipped else whole

    return find


def _layout(config: Mapping[str, Any], where: str) -> Layout:
    of = f" of {where!r}" if where else ""
    kind = config.get("checkpoint_format", config.get("format", "gptq"))
    if kind not in _ZEROS_ADDED or config.get("is_marlin_format"):
        raise InvalidModel(
            f"config.json: GPTQ weights of checkpoint_format {'marlin' if kind in _ZEROS_ADDED else kind!r}{of} are not "
            f"supported; {' and '.join(_ZEROS_ADDED)} are."
        )
    bits, group = config.get("bits", 4), config.get("group_size", 128)
    if bits not in (2, 3, 4, 8):
        raise InvalidModel(
            f"config.json: GPTQ weights of {bits!r} bits{of} are not supported; of 2, 3, 4 and 8 are."
        )
    if type(group) is not int or group == 0 or group < -1:
        raise InvalidModel(
            f"config.json: group_size {group!r}{of} of quantization_config is no number of inputs."
        )
    if config.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        raise InvalidModel(
            f"config.json: GPTQ weights in words of {config['pack_dtype']!r}{of} are not supported, int32 is."
        )
    return Layout(
        "int", bits, ".qweight", (".scales",), 1, WHOLE if group == -1 else group, inputs_first=True,
        zeros=".qzeros", zeros_added=_ZEROS_ADDED[kind], group_numbers=".g_idx",
    )  # fmt: skip


def _overrides(dynamic: Any) -> list[tuple[re.Pattern[str], Mapping[str, Any] | None]]:
    """Patterns of module names in their order, each with what it changes; None (those with "-:"): not quantised."""
    if not isinstance(dynamic, dict) or not all(isinstance(own, dict) for own in dynamic.values()):
        raise InvalidModel("config.json: dynamic of quantization_config must be an object of objects.")
    found: list[tuple[re.Pattern[str], Mapping[str, Any] | None]] = []
    for pattern, own in dynamic.items():
        left_out = pattern.startswith("-:")
        found.append((compiled(re.sub(r"^[-+]:", "", pattern)), None if left_out else own))
    return found

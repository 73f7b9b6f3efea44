"""compressed-tensors, as llm-compressor and vLLM's own copies of models are published.

    naive-, int- and float-quantized:
    X.weight              int8 or float8_e4m3fn [out, in]
    X.weight_scale        [1], [out, 1], [out, in / group] or of blocks, in the model's dtype
    X.weight_zero_point   int8, as the scales, if asymmetric

    pack-quantized:
    X.weight_packed       int32 [out, ceil(in * bits / 32)], neighbouring inputs from the lowest bits on, code + 2^(bits - 1)
    X.weight_scale        [out, in / group]
    X.weight_zero_point   int32 [ceil(out * bits / 32), in / group], neighbouring outputs likewise, if asymmetric
    X.weight_g_idx        int32 [in], if `actorder` is "group"

https://github.com/vllm-project/compressed-tensors, compressed_tensors/compressors/ and quantization/quant_args.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lightllm.errors import InvalidModel
from lightllm.quantization.layout import WHOLE, Layout, Layouts
from lightllm.quantization.module_names import compiled, names_of

_PLAIN = ("naive-quantized", "int-quantized", "float-quantized")
_PACKED = "pack-quantized"
_UNREAD = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".output_scale", ".output_zero_point", ".weight_shape",
)  # fmt: skip
_LINEAR = "Linear"


def layouts(config: Mapping[str, Any]) -> Layouts:
    sparsity = config.get("sparsity_config")
    if sparsity and sparsity.get("format", "dense") != "dense":
        _refuse(f"sparsity_config of format {sparsity['format']!r} is")
    if config.get("transform_config", {}) not in ({}, None):
        _refuse("transform_config is")
    groups = config.get("config_groups")
    if not isinstance(groups, dict):
        raise InvalidModel("config.json: quantization_config of compressed-tensors has no config_groups.")
    targets: list[tuple[str, re.Pattern[str] | None, Layout | None]] = []
    for name, group in groups.items():
        if not isinstance(group, dict):
            _refuse(f"config_groups.{name} {group!r} is")
        layout = _layout(group, group.get("format") or config.get("format"), name)
        for target in names_of(group, "targets"):
            targets.append((target, _pattern(target), layout))
    # An exact name counts before a pattern, that before a class of modules.
    targets.sort(key=lambda one: 2 if one[0] == _LINEAR else 0 if one[1] is None else 1)
    ignored = [(name, _pattern(name)) for name in names_of(config, "ignore")]

    def find(names: Sequence[str]) -> Layout | None:
        if any(_matches(target, pattern, names) for target, pattern in ignored):
            return None
        return next((layout for target, pattern, layout in targets if _matches(target, pattern, names)), None)

    return find


def _layout(group: Mapping[str, Any], kind: Any, name: str) -> Layout | None:
    weights = group.get("weights")
    if weights is None:
        return None  # activations or KV memory alone
    bits, element, strategy = weights.get("num_bits", 8), weights.get("type", "int"), weights.get("strategy")
    where, symmetric = f"weights of config_groups.{name}", weights.get("symmetric", True)
    rows, columns = _sharing(weights, strategy, where)
    if kind in _PLAIN and bits == 8 and element in ("int", "float"):
        if element == "float" and not symmetric:
            _refuse(f"asymmetric float {where} are")
        return Layout(
            "signed" if element == "int" else "e4m3", 8, ".weight", (".weight_scale",), rows, columns,
            zeros="" if symmetric else ".weight_zero_point", unread=(*_UNREAD, ".weight_zero_point"),
        )  # fmt: skip
    if kind == _PACKED and bits in (4, 8) and element == "int" and rows == 1:
        ordered = weights.get("actorder") in ("group", "dynamic", True)
        return Layout(
            "int", bits, ".weight_packed", (".weight_scale",), rows, columns,
            zeros="" if symmetric else ".weight_zero_point", group_numbers=".weight_g_idx" if ordered else "",
            unread=_UNREAD,
        )  # fmt: skip
    _refuse(f"{where}: format {kind!r}, {element} of {bits} bits, strategy {strategy!r} is")


def _sharing(weights: Mapping[str, Any], strategy: Any, where: str) -> tuple[int, int]:
    """Outputs and inputs that share a scale."""
    group, block = weights.get("group_size"), weights.get("block_structure")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    if strategy == "tensor":
        return WHOLE, WHOLE
    if strategy == "channel":
        return 1, WHOLE
    if strategy == "group" and type(group) is int and group > 0:
        return 1, group
    if isinstance(block, str):
        block = [int(size) for size in block.split("x") if size.isdigit()]
    if strategy == "block" and isinstance(block, list) and len(block) == 2:
        return block[0], block[1]
    _refuse(f"{where}: strategy {strategy!r} with group_size {group!r} and block_structure {block!r} is")


def _pattern(target: str) -> re.Pattern[str] | None:
    return compiled(target.removeprefix("re:")) if target.startswith("re:") else None


def _matches(target: str, pattern: re.Pattern[str] | None, names: Sequence[str]) -> bool:
    if pattern is None:
        return target == _LINEAR or target in names
    return any(pattern.match(name) for name in names)


def _refuse(what: str) -> NoReturn:
    raise InvalidModel(
        f"config.json: compressed-tensors: {what} not supported.",
        "Take another copy of the model, such as one in bfloat16.",
    )

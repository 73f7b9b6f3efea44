"""Float8 (E4M3) as DeepSeek-V3, Qwen3-FP8 and GLM-FP8 are published, and the older form with one scale a tensor.

    X.weight             float8_e4m3fn [out, in]
    X.weight_scale_inv   float32 [ceil(out / 128), ceil(in / 128)], of a block; it multiplies, whatever its name says
    X.weight_scale       float32, of the whole tensor (AutoFP8), or [out, 1] (fbgemm_fp8)

https://github.com/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.quantization.layout import WHOLE, Layout, Layouts
from lightllm.quantization.module_names import NotConverted, names_of

_SCALES = (".weight_scale_inv", ".weight_scale")
_UNREAD = (".input_scale", ".activation_scale", ".output_scale", ".input_scale_ub")


def layouts(config: Mapping[str, Any]) -> Layouts:
    """Of `quant_method` fp8 and fbgemm_fp8."""
    if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise InvalidModel(f"config.json: fp8 weights of fmt {config['fmt']!r} are not supported, e4m3 is.")
    block = config.get("weight_block_size")
    if config["quant_method"] == "fbgemm_fp8":
        rows, columns = 1, WHOLE
    elif block is None:
        rows, columns = WHOLE, WHOLE
    elif isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block):
        rows, columns = block
    else:
        raise InvalidModel(
            f"config.json: weight_block_size {block!r} of quantization_config is not [rows, columns]."
        )
    layout = Layout("e4m3", 8, ".weight", _SCALES, rows, columns, unread=_UNREAD)
    skipped = NotConverted(names_of(config, "modules_to_not_convert", "ignored_layers", "ignore"))

    def find(names: Sequence[str]) -> Layout | None:
        return None if names in skipped else layout

    return find

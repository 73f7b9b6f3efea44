"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: as many tokens as the image has blocks of merge_size x merge_size patches.

The image is scaled so that its sides are multiples of a block and its area is within the processor's limits; its proportions change
as little as that permits.
"""

from __future__ import annotations

import math

from lightllm.errors import InvalidImage
from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder, positive
from lightllm.images.source import Detail

MARKER = "<|vision_start|><|image_pad|><|vision_end|>"
MAX_ASPECT = 200
"""Longer side / shorter side; the published processor refuses more."""


def layout(folder: VisionFolder) -> Layout:
    processor = folder.processor
    size = processor.get("size") or {}
    patch = positive(processor.get("patch_size", 14), "patch_size")
    block = patch * positive(processor.get("merge_size", 2), "merge_size")
    low = positive(
        processor.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or 56 * 56,
        "min_pixels",
    )
    high = positive(
        processor.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or 28 * 28 * 1280,
        "max_pixels",
    )

    def footprint(width: int, height: int, detail: Detail) -> Footprint:
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise InvalidImage(
                f"an image of {width} x {height} pixels is too narrow: the longer side may be {MAX_ASPECT} times the shorter"
            )
        rows, columns = blocks(width, height, block, low, high)
        return Footprint(rows * columns, grid=(1, rows, columns))

    return Layout(
        "qwen2_vl", MARKER, footprint, folder.fingerprint("qwen2_vl", block, low, high),
        written=MARKER, placeholder=folder.id_of("<|image_pad|>", "image_token_id"),
    )  # fmt: skip


def blocks(width: int, height: int, block: int, low: int, high: int) -> tuple[int, int]:
    """(rows, columns) of blocks of `block` pixels a side, from `low` to `high` pixels together: `smart_resize` of Qwen2-VL's
    published processor, with Python's rounding (half to even)."""
    rows, columns = round(height / block), round(width / block)
    if rows * columns * block * block > high:
        shrink = math.sqrt(width * height / high)
        rows = max(1, math.floor(height / shrink / block))
        columns = max(1, math.floor(width / shrink / block))
    elif rows * columns * block * block < low:
        grow = math.sqrt(low / (width * height))
        rows, columns = math.ceil(height * grow / block), math.ceil(width * grow / block)
    return rows, columns

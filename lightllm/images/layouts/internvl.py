"""InternVL-Chat 1.5, 2 and 2.5: the image is cut into up to 12 tiles of 448 x 448, with a thumbnail behind them; 256 tokens each.

`dynamic_preprocess` of the model's description: of all grids of tiles, the one whose proportions are nearest to the image's.
"""

from __future__ import annotations

from functools import lru_cache

from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder, positive, side
from lightllm.images.source import Detail

CONTEXT = "<IMG_CONTEXT>"


def layout(folder: VisionFolder) -> Layout:
    """Of the published checkpoints, whose limits are in config.json."""
    config = folder.config
    return _layout(
        folder, "<image>", config.get("force_image_size"), config.get("min_dynamic_patch", 1),
        config.get("max_dynamic_patch", 12), config.get("dynamic_image_size", True), config.get("use_thumbnail", True),
    )  # fmt: skip


def converted(folder: VisionFolder) -> Layout:
    """Of transformers' conversion, whose limits are the processor's."""
    processor = folder.processor
    return _layout(
        folder, CONTEXT, None, processor.get("min_patches", 1), processor.get("max_patches", 12), True, True
    )


def _layout(
    folder: VisionFolder,
    marker: str,
    forced: int | None,
    fewest: int,
    most: int,
    dynamic: bool,
    thumbnail: bool,
) -> Layout:
    vision = folder.config.get("vision_config") or {}
    tile = side(forced or vision.get("image_size", 448), "image_size")
    patch = side(vision.get("patch_size", 14), "patch_size")
    tokens = int((tile // patch) ** 2 * folder.config.get("downsample_ratio", 0.5) ** 2)
    fewest, most = positive(fewest, "fewest tiles"), positive(most, "most tiles")

    def footprint(width: int, height: int, detail: Detail) -> Footprint:
        if not dynamic or detail == "low":
            return Footprint(tokens, max_tiles=1 if dynamic else None)
        columns, rows = tile_grid(width, height, tile, fewest, most)
        count = columns * rows
        return Footprint((count + (thumbnail and count > 1)) * tokens, tiles=(columns, rows))

    return Layout(
        "internvl", marker, footprint,
        folder.fingerprint("internvl", tile, patch, tokens, fewest, most, dynamic, thumbnail),
        written=f"<img>{CONTEXT}</img>", placeholder=folder.id_of(CONTEXT, "img_context_token_id", "image_token_id"),
    )  # fmt: skip


def tile_grid(width: int, height: int, side: int, fewest: int, most: int) -> tuple[int, int]:
    """(columns, rows) whose ratio is nearest to width / height. Of grids that are equally near, a larger one is taken while the
    image has more than half of its pixels."""
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(fewest, most):
        distance = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * side * side * columns * rows
        if distance < best_distance or (distance == best_distance and large_enough):
            best, best_distance = (columns, rows), distance
    return best


@lru_cache
def _grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """All of `fewest` to `most` tiles, the smallest first; of the same size, those with fewer columns."""
    grids = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if fewest <= i * j <= most]
    return sorted(grids, key=lambda grid: grid[0] * grid[1])

"""M-RoPE (Qwen2-VL, arXiv 2409.12191): the three rotary positions (time, row, column) of each token of a prompt with images.

A text token has one position three times over, one more than the largest before it. An image begins at such a position p: its
token (t, h, w) has (p + t, p + h, p + w). So it takes max(grid) positions, and what follows it lies behind its index.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightllm.protocol.messages import ImageSpan


def rope_delta(images: Sequence[ImageSpan]) -> int:
    """What is added to the index of a token behind all images to get its position: never above 0. Images without a grid are
    like text."""
    return sum(max(image.grid) - image.tokens for image in images if image.grid is not None)


def end_of_images(images: Sequence[ImageSpan]) -> int:
    """From this index on every token has its index and `rope_delta` for a position."""
    return max((image.start + image.tokens for image in images if image.grid is not None), default=0)


def prompt_positions(images: Sequence[ImageSpan], start: int, end: int) -> np.ndarray:
    """int64 [3, end - start]: of tokens [start, end) of a context whose prompt has these images, ascending."""
    positions = np.tile(np.arange(start, end, dtype=np.int64), (3, 1))
    for image in images:
        if image.grid is None:
            continue
        stop = image.start + image.tokens
        first, last = (min(max(index, start), end) - start for index in (image.start, stop))
        # `positions` of the image's own tokens are indices moved by what the images before it have taken less.
        place = np.stack(np.unravel_index(np.arange(image.tokens), image.grid))
        inside = place - np.arange(image.tokens)
        offset = start - image.start
        positions[:, first:last] += inside[:, first + offset : last + offset]
        positions[:, last:] += max(image.grid) - image.tokens
    return positions

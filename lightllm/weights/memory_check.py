"""Whether the weights that a process is to load can fit at all, before it begins."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.errors import InvalidModel
from lightllm.weights.source import TensorSource

_SURELY_KEPT = 0.9
"""Part of the tensors that is loaded in any case; a head that is the embedding again, or layers for several tokens, are not."""


def check_memory(
    source: TensorSource,
    names: set[str],
    dtype: torch.dtype,
    ranks: int,
    memory: int | None,
    what: str,
    bits_of: Callable[[str], int | None] = lambda name: None,
) -> None:
    """Raises `InvalidModel` where the tensors `names` can never fit.

    ranks: how many share them evenly; memory: bytes that there are for this one's share, None: it is not asked; what: in words;
    bits_of: how many each number of a tensor is quantised to while it is loaded, None: it is not."""
    sizes = {bits: {name for name in names if bits_of(name) == bits} for bits in (None, 4, 8)}
    nbytes = sum(
        source.nbytes(dtype, own) * (bits or 8 * dtype.itemsize) // (8 * dtype.itemsize)
        for bits, own in sizes.items()
    )
    needed = int(nbytes * _SURELY_KEPT) // ranks
    if memory is not None and needed > memory:
        raise InvalidModel(
            f"The {what} take {needed >> 20} MiB{' a rank' if ranks > 1 else ''}, there are {memory >> 20} MiB.",
            "Take a smaller model or --data_type, or more GPUs with --tp.",
        )

"""Whether the weights that a process is to load can fit at all, before it begins."""

from __future__ import annotations

import torch

from lightllm.errors import InvalidModel
from lightllm.weights.source import TensorSource

_SURELY_KEPT = 0.9
"""Part of the tensors that is loaded in any case; a head that is the embedding again, or layers for several tokens, are not."""


def check_memory(
    source: TensorSource, names: set[str], dtype: torch.dtype, ranks: int, memory: int | None, what: str
) -> None:
    """Raises `InvalidModel` where the tensors `names` can never fit.

    ranks: how many share them evenly; memory: bytes that there are for this one's share, None: it is not asked; what: in words."""
    needed = int(source.nbytes(dtype, names) * _SURELY_KEPT) // ranks
    if memory is not None and needed > memory:
        raise InvalidModel(
            f"The {what} take {needed >> 20} MiB{' a rank' if ranks > 1 else ''}, there are {memory >> 20} MiB.",
            "Take a smaller model or --data_type, or more GPUs with --tp.",
        )

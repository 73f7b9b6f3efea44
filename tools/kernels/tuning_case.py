"""What of a kernel is tuned on a GPU: the `TUNING_CASES` of each file, for `tools/tune_kernels.py`."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningCase:
    """One size of a kernel's problem. The best candidate becomes the entry up to that size."""

    config: str
    """Name of the kernel in the configuration files."""
    sizes: Mapping[str, int]
    """What the launching function asks `launch_config` with."""
    up_to: Mapping[str, int]
    """Bounds of the entry that the result becomes; empty: of the last one, for everything larger."""
    candidates: Sequence[Mapping[str, int]]
    make: Callable[[torch.device], Callable[[], object]]
    """Makes the inputs, returns what is measured: one launch. On a CPU, where it is interpreted, as few rows as show that it
    runs."""


def grid(**choices: Sequence[int]) -> list[dict[str, int]]:
    """Every combination: grid(BLOCK=(512, 1024), num_warps=(4, 8))."""
    return list(_combinations(choices))


def _combinations(choices: Mapping[str, Sequence[int]]) -> Iterator[dict[str, int]]:
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values))

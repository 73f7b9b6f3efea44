"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A sampled token depends on (seed, choice index, output position) and the logits only: the same request gives the same
tokens alone, in a batch, after a pause or a restart, on every rank and device.
"""

from __future__ import annotations

import torch

from lightllm.ops.torch import uniforms as torch_impl


def uniforms(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One uniform number in (0, 1) for each (seed, choice index, output position).

    All int64 [n], the seeds with the bits of unsigned numbers; returns float64 [n]: (w + 0.5) / 2**32 for the first word w
    of Philox with key = the seed's low and high word, counter = (position, 0, choice, 0).
    """
    if seeds.is_cuda:
        from lightllm.ops.triton import uniforms as triton_impl

        return triton_impl.uniforms(seeds, choices, positions)
    return torch_impl.uniforms(seeds, choices, positions)

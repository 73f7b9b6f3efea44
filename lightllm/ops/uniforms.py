"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A sampled token depends on (seed, choice index, output position) and the logits only: the same request gives the same
tokens alone, in a batch, after a pause or a restart, on every rank and device.
"""

from __future__ import annotations

import numpy as np
import torch

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10


def uniforms(seeds: torch.Tensor, choices: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """One uniform number in (0, 1) for each (seed, choice index, output position).

    All int64 [n], the seeds with the bits of unsigned numbers; returns float64 [n]: (w + 0.5) / 2**32 for the first word w
    of Philox with key = the seed's low and high word, counter = (position, 0, choice, 0).
    """
    if seeds.is_cuda:
        from lightllm.ops.triton import uniforms as triton_impl

        return triton_impl.uniforms(seeds, choices, positions)
    key = seeds.numpy().view(np.uint64)
    counter = np.zeros((4, len(key)), dtype=np.uint64)
    counter[0] = positions.numpy()
    counter[2] = choices.numpy()
    words = philox4x32(counter, np.stack([key & _LOW, key >> _WORD]))
    return torch.from_numpy((words[0].astype(np.float64) + 0.5) * 2.0**-32)


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """counter uint64 [4, n] and key uint64 [2, n], holding 32-bit words; returns four random 32-bit words [4, n].

    In numpy, which takes half as long as torch for so few numbers.
    """
    even, odd = counter[0::2], counter[1::2]
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even, odd = (product >> _WORD)[::-1] ^ odd ^ key, (product & _LOW)[::-1]
        key = (key + _KEY_STEPS) & _LOW
    return np.stack([even[0], odd[0], even[1], odd[1]])

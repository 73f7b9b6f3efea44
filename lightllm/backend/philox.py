"""Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A sampled token depends on (seed, choice index, output position) and the logits only: the same request gives the same
tokens alone, in a batch, after a pause or a restart, on every rank.
"""

from __future__ import annotations

import numpy as np

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10


def philox4x32(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """counter uint64 [4, n] and key uint64 [2, n], holding 32-bit words; returns four random 32-bit words [4, n]."""
    even, odd = counter[0::2], counter[1::2]
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even, odd = (product >> _WORD)[::-1] ^ odd ^ key, (product & _LOW)[::-1]
        key = (key + _KEY_STEPS) & _LOW
    return np.stack([even[0], odd[0], even[1], odd[1]])


def uniforms(seeds: np.ndarray, choices: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One uniform number in (0, 1) for each (seed, choice index, output position).

    All integer [n]; returns float64 [n]. Key = the seed's low and high word; counter = (position, 0, choice, 0).
    """
    count = seeds.shape[0]
    seeds = seeds.astype(np.uint64)
    counter = np.zeros((4, count), dtype=np.uint64)
    counter[0] = positions
    counter[2] = choices
    words = philox4x32(counter, np.stack([seeds & _LOW, seeds >> _WORD]))
    return (words[0].astype(np.float64) + 0.5) * 2.0**-32

"""Philox4x32-10 against the known answers that Random123 publishes (tests/kat_vectors)."""

import numpy as np
import pytest
import torch

from lightllm.ops.uniforms import philox4x32, uniforms

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return np.array([[int(word, 16)] for word in text.split()], dtype=np.uint64)


@pytest.mark.parametrize("counter,key,expected", KNOWN)
def test_known_answers(counter, key, expected):
    assert (philox4x32(words(counter), words(key)) == words(expected)).all()


def test_columns_are_independent():
    counter = np.concatenate([words(c) for c, _, _ in KNOWN], axis=1)
    key = np.concatenate([words(k) for _, k, _ in KNOWN], axis=1)
    assert (philox4x32(counter, key) == np.concatenate([words(e) for _, _, e in KNOWN], axis=1)).all()


def test_seed_choice_and_position_each_change_the_number():
    seeds = torch.tensor([1, 2, 1, 1, 1 + 2**32])
    choices = torch.tensor([0, 0, 1, 0, 0])
    positions = torch.tensor([0, 0, 0, 1, 0])
    assert len(set(uniforms(seeds, choices, positions).tolist())) == 5


def test_numbers_are_uniform_in_the_open_interval():
    numbers = uniforms(torch.full((20000,), 42), torch.zeros(20000, dtype=torch.int64), torch.arange(20000))
    assert numbers.min() > 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers.numpy(), bins=20, range=(0, 1))
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 50  # 19 degrees of freedom, p = 0.0001

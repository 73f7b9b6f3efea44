"""Numbers of few bits that are packed into words of a checkpoint, from the lowest bits on, without gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lightllm.weights.split import Part

_PACKED_AT_ONCE = 1 << 20
"""Numbers that are packed at a time: each takes 16 bytes meanwhile."""


class Words:
    """The smallest run of whole words that holds whole numbers: `words` words, `numbers` numbers."""

    def __init__(self, word_bits: int, bits: int) -> None:
        both = math.lcm(word_bits, bits)
        self.words, self.numbers = both // word_bits, both // bits
        self._word_bits, self._bits = word_bits, bits

    def count(self, numbers: int) -> int:
        """Words that hold so many numbers."""
        return -(-numbers * self._bits // self._word_bits)

    def covering(self, part: Part) -> Part:
        """The words, in whole runs but for the tensor's last, that hold the numbers of a part."""
        begin, end = part.start // self.numbers, self.count(part.stop)
        return Part(part.dim, begin * self.words, max(end, begin * self.words))

    def first(self, words: Part) -> int:
        """The number that such words begin with."""
        return words.start // self.words * self.numbers


def elements(words: torch.Tensor, bits: int, order: Sequence[int] = ()) -> torch.Tensor:
    """words: int32 [n, count]. Returns the numbers in them, uint8 [n, count * 32 / bits]; order: see `Layout`."""
    if bits == 3:
        return _across_words(words, bits)
    found = bytes_of(words)
    if bits < 8:
        found = torch.stack([found >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)], -1).flatten(
            1
        )
    if not order:
        return found
    places = torch.tensor(order).argsort()
    return found.view(len(words), -1, len(order))[:, :, places].flatten(1)


def each_plus(added: int, bits: int) -> int:
    """What adds `added` to each number of an int32 word, with a carry into the next one."""
    total = sum(added << shift for shift in range(0, 32, bits))
    return total - (1 << 32) if total >= 1 << 31 else total


def bytes_of(words: torch.Tensor) -> torch.Tensor:
    """words: int32 [n, count] of any strides. Returns uint8 [n, 4 * count], low bytes first."""
    if not words.is_contiguous() or words.stride(1) != 1:  # a single column has any stride
        words = words.clone(memory_format=torch.contiguous_format)
    return words.view(torch.uint8)


def _across_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Of numbers some of which lie in two words; `bits` words hold 32 of them."""
    rows, count = words.shape
    runs = torch.nn.functional.pad(words, (0, -count % bits)).view(rows, -1, bits).long() & 0xFFFFFFFF
    starts = torch.arange(32) * bits
    word, shift = starts // 32, starts % 32
    both = runs[:, :, word] | runs[:, :, (word + 1).clamp_(max=bits - 1)] << 32
    return (both >> shift & (1 << bits) - 1).to(torch.uint8).flatten(1)


def two_in_a_byte(numbers: torch.Tensor) -> torch.Tensor:
    """numbers: uint8 [n, even], below 16. Returns uint8 [n, half], even ones in the low bits."""
    return numbers[:, ::2] | numbers[:, 1::2] << 4


def packed_words(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of `elements`, for bits that divide 32. numbers: uint8 [n, count]; returns int32 [n, ceil(count * bits / 32)]."""
    each, step = 32 // bits, max(1, _PACKED_AT_ONCE // max(1, numbers.shape[1]))
    return torch.cat([_packed(rows, bits, each) for rows in numbers.split(step)])


def _packed(numbers: torch.Tensor, bits: int, each: int) -> torch.Tensor:
    padded = torch.nn.functional.pad(numbers, (0, -numbers.shape[1] % each)).unflatten(1, (-1, each))
    words = (padded.long() << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()

"""How a format keeps a matrix [out, in] in few bits: one table, `Layout`, that `read_layout.py` reads by. Loads no torch.

    weight[o, i] = (code[o, i] - zero[o, i // group]) * scale[o, i // group]

A code is an integer, or the number that a float of 8 or 4 bits stands for; such have no zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

WHOLE = 0
"""Of `Layout.scale_rows` and `Layout.group`: one scale for all outputs, or for all inputs."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """The tensors `<module><suffix>` of a matrix. Two matrices of one layout can be fused."""

    element: str
    """Of a code: "int" (unsigned, less 2^(bits - 1)), "signed", "e4m3" or "e2m1"."""
    bits: int
    codes: str
    """Suffix of the codes; "signed" and "e4m3" are one a number, others in words."""
    scales: tuple[str, ...]
    """Suffix of the scales; several: whichever there is."""
    scale_rows: int
    """Outputs that share a scale."""
    group: int
    """Inputs that share a scale."""
    word: str = "int32"
    """dtype of the words; "uint8" for those of a block format, [out, in / group, group / 2]."""
    packed_outputs: bool = False
    """A word holds neighbouring outputs, not neighbouring inputs."""
    inputs_first: bool = False
    """Codes and scales are [in, out]."""
    order: tuple[int, ...] = ()
    """Which of a word's numbers stands in its lowest bits, in the next ones, ...; none: in order."""
    zeros: str = ""
    """Suffix of the zeros, as the scales but in words along the outputs, or as "signed" codes; none: 2^(bits - 1)."""
    zeros_added: int = 0
    """What is added to each stored zero: to those of a word at once, so that what one loses is carried to the next, where numbers
    end with the word; else modulo 2^bits."""
    group_numbers: str = ""
    """Suffix of int32 [in], which group each input is of; none: in order."""
    exponents: bool = False
    """Scales are uint8, 2^(scale - 127)."""
    unread: tuple[str, ...] = ()
    """Suffixes of what the checkpoint may hold besides: of activations, or what the shapes tell."""


Layouts = Callable[[Sequence[str]], Layout | None]
"""From the names of a module (the checkpoint's and transformers') to how its matrix is kept; None: dense."""

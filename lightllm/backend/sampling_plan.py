"""What the sampler has to do for the rows of a round, with everything it needs for that on the device.

A plan holds nothing that changes from token to token, so it is used again as long as the same rows sample: then a round
sends nothing for its sampling but the output numbers of its tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from lightllm.backend.device import Device, upload
from lightllm.backend.row_state import EDITS, Feature, RowState
from lightllm.ops.sample import FILTERED, GREEDY, RANDOM

_NO_ENTRIES = np.zeros(0, dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that are chosen in the same way; g of them."""

    entries: torch.Tensor | None
    """int64 [g]: which of the S rows; None: all of them."""
    count: int


@dataclasses.dataclass(frozen=True)
class GreedyGroup(Group):
    silent: bool
    """No row wants a log-probability."""


@dataclasses.dataclass(frozen=True)
class RandomGroup(Group):
    inverse_temperature: torch.Tensor | None
    """float32 [g]; None: all are 1."""
    seeds: torch.Tensor
    """int64 [g]: the bits of unsigned numbers."""
    choices: torch.Tensor
    """int64 [g]"""
    filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    """top_k int64 [g], top_p and min_p float64 [g]; None: no row filters."""


@dataclasses.dataclass(frozen=True)
class MixedGroup(Group):
    """Rows of all kinds, for a device that chooses for them with one kernel."""

    parameters: tuple[torch.Tensor, torch.Tensor]
    """kinds int32 [g], inverse temperatures float32 [g]: as `sample_rows` wants them."""
    seeds: torch.Tensor
    choices: torch.Tensor
    filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Penalties:
    rows: np.ndarray
    """int64 [m]: rows that list tokens."""
    entries: torch.Tensor
    """int64 [m]: which of the S rows they are."""
    rows_on_device: torch.Tensor
    factors: torch.Tensor
    """float32 [3, m]: repetition, frequency, presence."""


class Pairs(NamedTuple):
    """(row, token) pairs, one for every token of every list."""

    entries: torch.Tensor
    """int64 [p]: which of the S rows."""
    token_ids: torch.Tensor
    """int64 [p]"""
    values: tuple[torch.Tensor, ...]
    """Each [p]: what belongs to the pair."""


@dataclasses.dataclass(frozen=True)
class Constrained:
    """Rows with a constraint: their next token depends on those before."""

    positions: list[int]
    """Which of the S rows; c of them."""
    rows: np.ndarray
    """int64 [c]"""
    entries: torch.Tensor
    """int64 [c]: the positions."""


@dataclasses.dataclass(frozen=True)
class Alternatives:
    """Rows that want the most likely tokens listed."""

    positions: list[int]
    """Which of the S rows."""
    entries: torch.Tensor
    inverse_temperature: torch.Tensor | None
    """float32 [a]; None: of the untouched logits."""
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """Only what is not None or empty is done."""

    rows: np.ndarray
    """int64 [S]"""
    rows_on_device: torch.Tensor
    features: int
    """Of all rows together."""
    groups: list[Group]
    penalties: Penalties | None
    decay: Pairs | None
    """values: first output number that counts (int64), log of the factor (float64)."""
    bias: Pairs | None
    """values: what is added."""
    minimum: Pairs | None
    """values: min_new_tokens (int64)."""
    allowed_entries: torch.Tensor | None
    allowed: Pairs | None
    constrained: Constrained | None
    raw: torch.Tensor | None
    """int64 [r]: rows whose log-probability is of the untouched logits, where that makes a difference."""
    alternatives: list[Alternatives]
    counted: tuple[np.ndarray, torch.Tensor, torch.Tensor] | None
    """Rows whose tokens are counted: rows int64 [c] on the host, which of the S rows and rows on the device."""

    @functools.cached_property
    def is_silent_greedy(self) -> bool:
        """Nothing is wanted of the logits but which is the largest of each row."""
        silent = all(isinstance(group, GreedyGroup) and group.silent for group in self.groups)
        return silent and not self.features & EDITS and self.raw is None and not self.alternatives


def make_plan(state: RowState, rows: np.ndarray, device: Device) -> SamplingPlan:
    """rows: int64 [S], distinct, all joined."""
    builder = _Builder(state, rows, device)
    return SamplingPlan(
        rows=rows,
        rows_on_device=upload(device, rows)[0],
        features=builder.every,
        groups=builder.groups(),
        penalties=builder.penalties(),
        decay=builder.pairs(Feature.DECAY, state.decay_pairs),
        bias=builder.pairs(Feature.BIAS, state.logit_bias.__getitem__),
        minimum=builder.pairs(Feature.MIN_NEW, state.minimum_pairs),
        allowed_entries=builder.entries_on_device(Feature.ALLOWED),
        allowed=builder.pairs(Feature.ALLOWED, lambda row: (state.allowed_tokens[row],)),
        constrained=builder.constrained(),
        raw=builder.raw(),
        alternatives=builder.alternatives(),
        counted=builder.counted(),
    )


class _Builder:
    def __init__(self, state: RowState, rows: np.ndarray, device: Device) -> None:
        self._state = state
        self._rows = rows
        self._features = state.features[rows]
        self.every = int(np.bitwise_or.reduce(self._features))
        """Features of any row."""
        self._device = device

    def groups(self) -> list[Group]:
        kinds = self._features & (Feature.RANDOM | Feature.FILTER)
        if self._device.samples_in_one_kernel and kinds.any():
            return [self._mixed(kinds)]
        values = sorted(set(kinds.tolist()))
        return [self._group(value, (kinds == value).nonzero()[0], alone=len(values) == 1) for value in values]

    def _group(self, kind: int, entries: np.ndarray, alone: bool) -> Group:
        on_device = None if alone else self._upload(entries)[0]
        if not kind & Feature.RANDOM:
            silent = bool((self._features[entries] & Feature.SILENT).all())
            return GreedyGroup(on_device, len(entries), silent)
        state, rows = self._state, self._rows[entries]
        temperature = state.inverse_temperature[rows]
        seeds, choices = self._upload(state.seed[rows].view(np.int64), state.choice[rows])
        filters = None
        if kind & Feature.FILTER:
            top_k, top_p, min_p = self._upload(state.top_k[rows], *self._values(rows, "top_p", "min_p"))
            filters = (top_k, top_p, min_p)
        scaled = self._upload(temperature)[0] if (temperature != 1.0).any() else None
        return RandomGroup(on_device, len(entries), scaled, seeds, choices, filters)

    def _mixed(self, kinds: np.ndarray) -> Group:
        state, rows = self._state, self._rows
        numbers = np.full(len(rows), GREEDY, dtype=np.int32)
        numbers[kinds == Feature.RANDOM] = RANDOM
        numbers[kinds == (Feature.RANDOM | Feature.FILTER)] = FILTERED
        codes, scales, seeds, choices, top_k, top_p, min_p = self._upload(
            numbers, state.inverse_temperature[rows], state.seed[rows].view(np.int64), state.choice[rows],
            state.top_k[rows], *self._values(rows, "top_p", "min_p"),
        )  # fmt: skip
        return MixedGroup(None, len(rows), (codes, scales), seeds, choices, (top_k, top_p, min_p))

    def penalties(self) -> Penalties | None:
        entries = self._entries(Feature.COUNTS)
        entries = entries[self._state.counts.lists_any(self._rows[entries])]
        if not len(entries):
            return None
        rows = self._rows[entries]
        factors = np.stack(self._values(rows, "repetition_penalty", "frequency_penalty", "presence_penalty"))
        return Penalties(rows, *self._upload(entries, rows, factors))

    def pairs(self, feature: int, lists: Callable[[int], tuple[np.ndarray, ...]]) -> Pairs | None:
        """lists: of a row, its token ids and what belongs to each."""
        entries = self._entries(feature)
        if not len(entries):
            return None
        columns = [lists(row) for row in self._rows[entries].tolist()]
        where = np.repeat(entries, [len(column[0]) for column in columns])
        on_device = self._upload(where, *(np.concatenate(parts) for parts in zip(*columns, strict=True)))
        return Pairs(on_device[0], on_device[1], tuple(on_device[2:]))

    def constrained(self) -> Constrained | None:
        entries = self._entries(Feature.CONSTRAINED)
        if not len(entries):
            return None
        return Constrained(entries.tolist(), self._rows[entries], self._upload(entries)[0])

    def raw(self) -> torch.Tensor | None:
        entries = self._entries(Feature.RAW)
        entries = entries[(self._features[entries] & (EDITS | Feature.RANDOM)) != 0]
        return self._upload(entries)[0] if len(entries) else None

    def alternatives(self) -> list[Alternatives]:
        entries = self._entries(Feature.TOP)
        is_raw = (self._features[entries] & Feature.RAW) != 0
        found = []
        for part, untouched in ((entries[is_raw], True), (entries[~is_raw], False)):
            if len(part):
                rows = self._rows[part]
                temperature = None if untouched else self._upload(self._state.inverse_temperature[rows])[0]
                found.append(
                    Alternatives(
                        part.tolist(), self._upload(part)[0], temperature, self._state.logprobs[rows]
                    )
                )
        return found

    def counted(self) -> tuple[np.ndarray, torch.Tensor, torch.Tensor] | None:
        entries = self._entries(Feature.COUNTS)
        if not len(entries):
            return None
        rows = self._rows[entries]
        return rows, *self._upload(entries, rows)

    def entries_on_device(self, feature: int) -> torch.Tensor | None:
        found = self.values_on_device(feature)
        return found[0] if found else None

    def values_on_device(self, feature: int, *names: str) -> tuple[torch.Tensor, ...] | None:
        """Which of the S rows have a feature, and of each named parameter their values; None if no row has it."""
        entries = self._entries(feature)
        if not len(entries):
            return None
        return tuple(self._upload(entries, *self._values(self._rows[entries], *names)))

    def _values(self, rows: np.ndarray, *names: str) -> list[np.ndarray]:
        """Of each parameter, its value in each of the rows."""
        return [self._state.values[name][rows] for name in names]

    def _entries(self, feature: int) -> np.ndarray:
        if not self.every & feature:
            return _NO_ENTRIES
        return ((self._features & feature) != 0).nonzero()[0]

    def _upload(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        return upload(self._device, *arrays)

"""From logits to the tokens of a round, by each row's own parameters.

Logits of a row pass: penalties, growth of the end tokens, logit bias, suppression of end tokens below
`min_new_tokens`, `allowed_token_ids`, temperature, filters. A round in which every row is greedy skips all of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lightllm.backend.philox import uniforms
from lightllm.backend.row_state import EDITS, Feature, RowState
from lightllm.ops.penalties import grow_end_tokens_, penalize_tokens_
from lightllm.ops.sample import (
    choose_filtered,
    choose_greedy,
    choose_random,
    greedy_tokens,
    token_logprobs,
    top_logprobs,
)
from lightllm.protocol.messages import TopLogprobs

SUPPRESSED = -1e30
"""Logit of an end token that must not come yet: still above a token that is never allowed (-inf)."""
IMPOSSIBLE = -1e20
"""Log-probabilities below this are of tokens that cannot be sampled; they are no alternatives."""
_MAX_LOG_GROWTH = 50.0
"""Keeps factor^n within float32."""


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The outcome for S rows, on the device."""

    token_ids: torch.Tensor
    """int64 [S]"""
    logprobs: torch.Tensor
    """float32 [S]"""
    top: dict[int, TopLogprobs]


class Sampler:
    """Reads `RowState`, never changes it. Holds two scratch buffers, so that a round allocates nothing of the logits' size."""

    def __init__(self, rows: RowState, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        self._buffers = [torch.empty(0, dtype=torch.float32, device=device) for _ in range(2)]

    def sample(self, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray) -> Sampled:
        """logits float32 [S, V], which may be overwritten; rows int64 [S]; positions int64 [S], the output number
        (from 0) of the token that is sampled."""
        features = self._rows.features[rows]
        any_feature = int(np.bitwise_or.reduce(features)) if len(features) else 0
        if not any_feature & (EDITS | Feature.RANDOM | Feature.TOP):
            return Sampled(*self._greedy(logits, features), {})
        raw = logits
        if any_feature & EDITS:
            logits = logits.clone() if any_feature & Feature.RAW else logits
            self._edit(logits, rows, positions, features)
        token_ids, logprobs = self._choose(logits, rows, positions, features)
        if any_feature & Feature.RAW:
            changed = _entries(features, Feature.RAW)
            changed = changed[(features[changed] & (EDITS | Feature.RANDOM)) != 0]
            if len(changed):
                index = self._to_device(changed)
                logprobs[index] = token_logprobs(raw[index], token_ids[index])
        top = self._alternatives(raw, logits, rows, features) if any_feature & Feature.TOP else {}
        return Sampled(token_ids, logprobs, top)

    def _choose(
        self, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, features: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Splits the rows into greedy, random and filtered ones."""
        token_ids = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        logprobs = torch.empty(len(rows), dtype=torch.float32, device=self._device)
        kind = features & (Feature.RANDOM | Feature.FILTER)
        state = self._rows
        for value in np.unique(kind).tolist():
            entries = (kind == value).nonzero()[0]
            index = self._to_device(entries)
            part = logits
            if len(entries) < len(rows):
                part = torch.index_select(logits, 0, index, out=self._scratch(logits[: len(entries)], 1))
            if not value & Feature.RANDOM:
                chosen = self._greedy(part, features[entries])
            else:
                its = rows[entries]
                factors = state.inverse_temperature[its]
                if (factors != 1.0).any():
                    part = torch.mul(part, self._to_device(factors)[:, None], out=self._scratch(part, 1))
                number = self._to_device(uniforms(state.seed[its], state.choice[its], positions[entries]))
                scratch = self._scratch(part)
                if value & Feature.FILTER:
                    top_k, top_p, min_p = (
                        self._to_device(array[its]) for array in (state.top_k, state.top_p, state.min_p)
                    )
                    chosen = choose_filtered(part, number, top_k, top_p, min_p, scratch)
                else:
                    chosen = choose_random(part, number, scratch)
            token_ids[index], logprobs[index] = chosen
        return token_ids, logprobs

    def _greedy(self, logits: torch.Tensor, features: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and log-probabilities; where no row wants the latter they are 0, and half of the work is saved."""
        if len(features) and (features & Feature.SILENT).all():
            return greedy_tokens(logits), torch.zeros(len(features), device=self._device)
        return choose_greedy(logits, self._scratch(logits))

    def _edit(
        self, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, features: np.ndarray
    ) -> None:
        """Everything between the model's logits and temperature, in place."""
        state = self._rows
        entries = _entries(features, Feature.COUNTS)
        if len(entries) and (listed := state.counts.listed(rows[entries])):
            some, token_ids, counts = listed
            penalties = self._to_device(state.penalties[rows[entries[some]]])
            penalize_tokens_(logits, self._to_device(entries[some]), token_ids, counts, *penalties.unbind(1))
        entries = _entries(features, Feature.DECAY)
        if len(entries):
            its = rows[entries]
            growth = np.maximum(positions[entries] - state.decay_start[its], 0) * state.decay_log_factor[its]
            growth = np.expm1(np.minimum(growth, _MAX_LOG_GROWTH)).astype(np.float32)
            where, token_ids, lengths = self._pairs(entries, [state.end_tokens[row] for row in its.tolist()])
            grow_end_tokens_(logits, where, token_ids, self._to_device(np.repeat(growth, lengths)))
        entries = _entries(features, Feature.BIAS)
        if len(entries):
            biases = [state.logit_bias[row] for row in rows[entries].tolist()]
            where, token_ids, _ = self._pairs(entries, [ids for ids, _ in biases])
            logits[where, token_ids] += self._to_device(np.concatenate([values for _, values in biases]))
        entries = _entries(features, Feature.MIN_NEW)
        entries = entries[positions[entries] + 1 < state.min_new_tokens[rows[entries]]]
        if len(entries):
            where, token_ids, _ = self._pairs(
                entries, [state.end_tokens[row] for row in rows[entries].tolist()]
            )
            logits[where, token_ids] = SUPPRESSED
        entries = _entries(features, Feature.ALLOWED)
        if len(entries):
            where, token_ids, _ = self._pairs(
                entries, [state.allowed_tokens[row] for row in rows[entries].tolist()]
            )
            allowed = logits[where, token_ids]
            logits[self._to_device(entries)] = -torch.inf
            logits[where, token_ids] = allowed

    def _alternatives(
        self, raw: torch.Tensor, logits: torch.Tensor, rows: np.ndarray, features: np.ndarray
    ) -> dict[int, TopLogprobs]:
        entries = _entries(features, Feature.TOP)
        is_raw = (features[entries] & Feature.RAW) != 0
        found: dict[int, TopLogprobs] = {}
        for part, untouched in ((entries[is_raw], True), (entries[~is_raw], False)):
            if len(part) == 0:
                continue
            values = (raw if untouched else logits)[self._to_device(part)]
            if not untouched:
                values = values * self._to_device(self._rows.inverse_temperature[rows[part]])[:, None]
            counts = self._rows.logprobs[rows[part]]
            found.update(zip(part.tolist(), list_top(values, counts), strict=True))
        return dict(sorted(found.items()))

    def _pairs(
        self, entries: np.ndarray, lists: list[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """(entry, token id) for every token of every list."""
        lengths = [len(token_ids) for token_ids in lists]
        where = self._to_device(np.repeat(entries, lengths))
        return where, self._to_device(np.concatenate(lists)), lengths

    def _scratch(self, like: torch.Tensor, number: int = 0) -> torch.Tensor:
        """One of two buffers, with the shape of `like`."""
        if self._buffers[number].numel() < like.numel():
            self._buffers[number] = torch.empty(like.numel(), dtype=torch.float32, device=self._device)
        return self._buffers[number][: like.numel()].view(like.shape)

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device, non_blocking=True)


def list_top(logits: torch.Tensor, counts: np.ndarray) -> list[TopLogprobs]:
    """The `counts[i]` most likely tokens of row i of `logits`, without those that cannot be sampled."""
    widest = int(counts.max()) if len(counts) else 0
    if widest == 0:
        return [TopLogprobs([], []) for _ in counts]
    token_ids, logprobs = top_logprobs(logits, widest)
    lists = []
    for ids, values, count in zip(token_ids.tolist(), logprobs.tolist(), counts.tolist(), strict=True):
        count = min(count, sum(value > IMPOSSIBLE for value in values))
        lists.append(TopLogprobs(ids[:count], values[:count]))
    return lists


def _entries(features: np.ndarray, feature: int) -> np.ndarray:
    return ((features & feature) != 0).nonzero()[0]

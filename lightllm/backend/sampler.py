"""From logits to the tokens of a round, by each row's own parameters.

Logits of a row pass: penalties, growth of the end tokens, logit bias, suppression of end tokens below
`min_new_tokens`, `allowed_token_ids`, constraints, temperature, filters. A round in which every row is greedy skips all of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lightllm.backend.constraint_masks import RoundMasks
from lightllm.backend.device import Device, upload
from lightllm.backend.row_state import EDITS, Feature, RowState
from lightllm.backend.sampling_plan import (
    GreedyGroup,
    Group,
    MixedGroup,
    RandomGroup,
    SamplingPlan,
    make_plan,
)
from lightllm.ops.penalties import grow_end_tokens_, penalize_tokens_
from lightllm.ops.sample import (
    greedy_tokens,
    sample_filtered,
    sample_greedy,
    sample_random,
    sample_rows,
    token_logprobs,
    top_logprobs,
)
from lightllm.ops.token_bitmask import keep_allowed_
from lightllm.ops.uniforms import uniforms
from lightllm.protocol.messages import TopLogprobs

SUPPRESSED = -1e30
"""Logit of an end token that must not come yet: still above a token that is never allowed (-inf)."""
IMPOSSIBLE = -1e20
"""Log-probabilities below this are of tokens that cannot be sampled; they are no alternatives."""
_MAX_LOG_GROWTH = 50.0
"""Keeps factor^n within float32."""


@dataclasses.dataclass(frozen=True)
class TopTokens:
    """The most likely tokens of some positions, still on the device."""

    positions: list[int]
    """Which of the results they belong to; a of them."""
    counts: np.ndarray
    """int64 [a]: how many each of them wants."""
    token_ids: torch.Tensor
    """int64 [a, most that one wants]"""
    logprobs: torch.Tensor
    """float32, likewise"""


@dataclasses.dataclass(frozen=True)
class Sampled:
    """The outcome for S rows, on the device."""

    token_ids: torch.Tensor
    """int64 [S]"""
    logprobs: torch.Tensor
    """float32 [S]; not finite where the logits of the row are no numbers"""
    top: list[TopTokens]


class Sampler:
    """Reads `RowState`, never changes it. Holds two scratch buffers, so that a round allocates nothing of the logits'
    size, and the plan of the last round. Never asks the device for a value."""

    def __init__(self, rows: RowState, device: Device) -> None:
        self._rows = rows
        self._device = device
        self._where = device.torch_device
        self._buffers = [torch.empty(0, dtype=torch.float32, device=self._where) for _ in range(2)]
        self._plan: SamplingPlan | None = None
        self._plan_version = -1

    def plan(self, rows: np.ndarray) -> SamplingPlan:
        """rows: int64 [S], those that sample. The plan of the last round, if it was for the same rows."""
        plan = self._plan
        if plan is None or self._plan_version != self._rows.version or not np.array_equal(plan.rows, rows):
            plan = self._plan = make_plan(self._rows, rows, self._device)
            self._plan_version = self._rows.version
        return plan

    def sample(
        self,
        logits: torch.Tensor,
        plan: SamplingPlan,
        positions: np.ndarray,
        on_device: torch.Tensor,
        masks: RoundMasks | None = None,
    ) -> Sampled:
        """logits [S, V], which may be overwritten; positions int64 [S] on the host and on the device: the output
        number (from 0) of the token that is sampled; masks: of the plan's constrained rows."""
        raw = logits = logits if plan.is_silent_greedy else logits.float()
        if plan.features & EDITS:
            logits = logits.clone() if plan.features & Feature.RAW else logits
            self._edit(logits, plan, positions, on_device)
            if plan.constrained is not None and masks is not None:
                keep_allowed_(logits, plan.constrained.entries, upload(self._device, masks.bits)[0])
        token_ids, logprobs = self._choose(logits, plan, on_device)
        if plan.raw is not None:
            choice = logprobs[plan.raw]  # times 0: nothing, or NaN where the changed logits are no numbers
            logprobs[plan.raw] = token_logprobs(raw[plan.raw], token_ids[plan.raw]) + choice * 0.0
        return Sampled(token_ids, logprobs, self._alternatives(raw, logits, plan))

    def _choose(
        self, logits: torch.Tensor, plan: SamplingPlan, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy, random and filtered rows each in one go."""
        if len(plan.groups) == 1:
            return self._choose_group(logits, plan.groups[0], positions)
        token_ids = torch.empty(len(plan.rows), dtype=torch.int64, device=self._where)
        logprobs = torch.empty(len(plan.rows), dtype=torch.float32, device=self._where)
        for group in plan.groups:
            assert group.entries is not None
            part = torch.index_select(logits, 0, group.entries, out=self._scratch(logits[: group.count], 1))
            chosen = self._choose_group(part, group, positions[group.entries])
            token_ids[group.entries], logprobs[group.entries] = chosen
        return token_ids, logprobs

    def _choose_group(
        self, logits: torch.Tensor, group: Group, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All of `logits` and `positions` are the group's."""
        if isinstance(group, GreedyGroup):
            if group.silent:  # half of the work is saved
                return greedy_tokens(logits)
            return sample_greedy(logits, self._scratch(logits))
        if isinstance(group, MixedGroup):
            numbers = uniforms(group.seeds, group.choices, positions)
            return sample_rows(logits, *group.parameters, numbers, *group.filters, self._scratch(logits))
        assert isinstance(group, RandomGroup)
        if group.inverse_temperature is not None:
            logits = torch.mul(logits, group.inverse_temperature[:, None], out=self._scratch(logits, 1))
        numbers = uniforms(group.seeds, group.choices, positions)
        if group.filters is None:
            return sample_random(logits, numbers, self._scratch(logits))
        return sample_filtered(logits, numbers, *group.filters, self._scratch(logits))

    def _edit(
        self, logits: torch.Tensor, plan: SamplingPlan, positions: np.ndarray, on_device: torch.Tensor
    ) -> None:
        """Everything between the model's logits and temperature, in place."""
        if plan.penalties is not None:
            listed = self._rows.counts.listed(plan.penalties.rows, plan.penalties.rows_on_device)
            penalize_tokens_(logits, plan.penalties.entries, *listed, *plan.penalties.factors)
        if plan.decay is not None:
            where, token_ids, (start, log_factor) = plan.decay
            growth = (on_device[where] - start).clamp_(min=0) * log_factor
            growth = growth.clamp_(max=_MAX_LOG_GROWTH).expm1_().float()
            grow_end_tokens_(logits, where, token_ids, growth)
        if plan.bias is not None:
            where, token_ids, (values,) = plan.bias
            logits[where, token_ids] += values
        if (
            plan.minimum is not None
            and (positions + 1 < self._rows.values["min_new_tokens"][plan.rows]).any()
        ):
            where, token_ids, (least,) = plan.minimum
            values = logits[where, token_ids]
            logits[where, token_ids] = values.masked_fill_(on_device[where] + 1 < least, SUPPRESSED)
        if plan.allowed is not None and plan.allowed_entries is not None:
            where, token_ids, _ = plan.allowed
            values = logits[where, token_ids]
            logits.index_fill_(0, plan.allowed_entries, -torch.inf)
            logits[where, token_ids] = values

    def _alternatives(self, raw: torch.Tensor, logits: torch.Tensor, plan: SamplingPlan) -> list[TopTokens]:
        found = []
        for part in plan.alternatives:
            values = (raw if part.inverse_temperature is None else logits)[part.entries]
            if part.inverse_temperature is not None:
                values = values * part.inverse_temperature[:, None]
            found.append(
                TopTokens(part.positions, part.counts, *top_logprobs(values, int(part.counts.max())))
            )
        return found

    def _scratch(self, like: torch.Tensor, number: int = 0) -> torch.Tensor:
        """One of two buffers, with the shape of `like`."""
        if self._buffers[number].numel() < like.numel():
            self._buffers[number] = torch.empty(like.numel(), dtype=torch.float32, device=self._where)
        return self._buffers[number][: like.numel()].view(like.shape)


def list_top(counts: np.ndarray, token_ids: np.ndarray, logprobs: np.ndarray) -> list[TopLogprobs]:
    """`TopTokens` on the host as lists, without the tokens that cannot be sampled."""
    lists = []
    for ids, values, count in zip(token_ids.tolist(), logprobs.tolist(), counts.tolist(), strict=True):
        count = min(count, sum(value > IMPOSSIBLE for value in values))
        lists.append(TopLogprobs(ids[:count], values[:count]))
    return lists

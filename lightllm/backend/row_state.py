"""What the backend remembers of each row between rounds: sampling parameters, last token, token counts.

| what                                  | where       | set by      | cleared by   |
|---------------------------------------|-------------|-------------|--------------|
| features, parameters, seed, lengths   | host arrays | join        | leave, join  |
| token id lists, prompt ids            | host dicts  | join        | leave, join  |
| why a request cannot be served        | host dict   | refuse      | leave, join  |
| last token                            | device      | each sample | —            |
| images, rope delta                    | host, device| join        | leave, join  |
| token counts (rows with penalties)    | device      | join        | leave, join  |

What sampling needs of the parameters goes to the device when it changes, and stays there (`sampling_plan.py`).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from lightllm.backend.device import Device
from lightllm.backend.rope_positions import rope_delta
from lightllm.backend.token_counts import TokenCounts
from lightllm.protocol.messages import ImageSpan
from lightllm.protocol.rounds import JoinRow, RowError
from lightllm.sampling_params import PARAMETERS, SamplingParams

logger = logging.getLogger(__name__)
_DEFAULTS = SamplingParams()


class Feature:
    """What sampling of a row needs beyond the greedy token: a round does the work that any of its rows asks for.

    Plain integers: numpy converts the members of an `enum` anew at every operation of every round.
    """

    RANDOM = 1
    FILTER = 2
    """top_k, top_p or min_p"""
    COUNTS = 4
    """repetition, frequency or presence penalty"""
    DECAY = 8
    MIN_NEW = 16
    BIAS = 32
    ALLOWED = 64
    RAW = 128
    """log-probabilities of the untouched logits"""
    TOP = 256
    PROMPT = 512
    JOINED = 1024
    SILENT = 2048
    """no log-probability is wanted"""
    CONSTRAINED = 4096
    """a regular expression, a grammar or a JSON schema"""


EDITS = (
    Feature.COUNTS | Feature.DECAY | Feature.MIN_NEW | Feature.BIAS | Feature.ALLOWED | Feature.CONSTRAINED
)


class RowState:
    """Arrays indexed by row, so that a round gathers with one index operation a parameter."""

    def __init__(self, max_rows: int, vocab_size: int, device: Device) -> None:
        self.vocab_size = vocab_size
        self.version = 0
        """Changes with whatever a `SamplingPlan` is made of."""
        self.features = np.zeros(max_rows, dtype=np.int32)
        self.prompt_len = np.zeros(max_rows, dtype=np.int64)
        self.seed = np.zeros(max_rows, dtype=np.uint64)
        self.choice = np.zeros(max_rows, dtype=np.int64)
        self.inverse_temperature = np.ones(max_rows, dtype=np.float32)
        self.top_k = np.full(max_rows, vocab_size, dtype=np.int64)
        self.values = {
            name: np.full(max_rows, getattr(_DEFAULTS, name), dtype=spec.row_dtype)
            for name, spec in PARAMETERS.items()
            if spec.row_dtype
        }
        """Parameters that a round uses as the request states them, by their names."""
        self.decay_start = np.zeros(max_rows, dtype=np.int64)
        self.decay_log_factor = np.zeros(max_rows, dtype=np.float64)
        self.logprobs = np.zeros(max_rows, dtype=np.int64)
        self.end_token_ids: dict[int, np.ndarray] = {}
        self.logit_bias: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.allowed_tokens: dict[int, np.ndarray] = {}
        self.prompt_ids: dict[int, np.ndarray] = {}
        """Only rows whose prompt log-probabilities are wanted; a token of an image counts as token 0."""
        self.prompt_logprobs: dict[int, int] = {}
        self.refused: dict[int, str] = {}
        """Rows of requests that cannot be prepared -> why. They compute along until the Router has heard of it."""
        self.images: dict[int, list[ImageSpan]] = {}
        """Only rows whose prompt has any."""
        self._held: tuple[dict[int, Any], ...] = (
            self.end_token_ids, self.logit_bias, self.allowed_tokens, self.prompt_ids, self.prompt_logprobs, self.refused,
            self.images,
        )  # fmt: skip
        self.counts = TokenCounts(max_rows, vocab_size, device)
        self.last_token = torch.zeros(max_rows + 1, dtype=torch.int64, device=device.torch_device)
        """The token of each row that has no KV yet; the place after the last row belongs to the hold row."""
        self.rope_delta = torch.zeros(max_rows + 1, dtype=torch.int64, device=device.torch_device)
        """What is added to a context index behind the prompt's images to get the position that rotary embeddings turn by."""

    def join(self, join: JoinRow) -> None:
        """A request enters a row; nothing of the former one remains."""
        row, params = join.row, join.params
        self.leave(row)
        if join.images:
            self.images[row] = join.images
            self.rope_delta[row : row + 1].fill_(rope_delta(join.images))
        features = Feature.JOINED | _features(params, self.vocab_size)
        self.prompt_len[row] = join.prompt_len
        self.seed[row] = join.seed
        self.choice[row] = join.choice
        self.logprobs[row] = min(max(params.logprobs, 0), self.vocab_size)
        if features & Feature.RANDOM:
            self.inverse_temperature[row] = 1.0 / params.temperature
            self.top_k[row] = params.top_k if params.top_k > 0 else self.vocab_size
        for name, values in self.values.items():
            values[row] = getattr(params, name)
        self.decay_start[row] = params.exponential_decay_length_penalty[0]
        self.decay_log_factor[row] = np.log(params.exponential_decay_length_penalty[1])
        if join.end_token_ids:
            self.end_token_ids[row] = self._token_ids(join.end_token_ids)
        else:
            features &= ~(Feature.DECAY | Feature.MIN_NEW)
        if params.logit_bias:
            biased = self._token_ids(list(params.logit_bias))
            values = np.array([params.logit_bias[i] for i in biased.tolist()], dtype=np.float32)
            self.logit_bias[row] = biased, values
        if params.allowed_token_ids:
            allowed = self._token_ids(params.allowed_token_ids)
            if len(allowed):
                self.allowed_tokens[row] = allowed
            else:
                logger.warning(
                    "ignoring allowed_token_ids: none is below the vocabulary size %d", self.vocab_size
                )
                features &= ~Feature.ALLOWED
        if features & Feature.COUNTS:
            self._join_counts(join)
        if params.prompt_logprobs >= 0:
            prompt = join.history_ids[: join.prompt_len]
            self.prompt_ids[row] = np.where(prompt < self.vocab_size, prompt, 0)
            self.prompt_logprobs[row] = min(params.prompt_logprobs, self.vocab_size)
        self.features[row] = features
        self.version += 1

    def refuse(self, row: int, prompt_len: int, reason: str) -> None:
        """The request in a row cannot be prepared: of what it asks nothing is done, so that it harms no other. Its ids are those
        of its images still."""
        images = self.images.pop(row, [])
        self.features[row] = Feature.JOINED | Feature.COUNTS  # whatever of it was taken in is forgotten
        self.leave(row)
        self.prompt_len[row] = prompt_len
        self.features[row] = Feature.JOINED | Feature.SILENT
        self.refused[row] = reason
        if images:
            self.images[row] = images

    def refused_entries(self, rows: np.ndarray) -> dict[int, RowError]:
        """Entries of a round, with these rows (int32 [n]), whose requests could not be prepared."""
        errors: dict[int, RowError] = {}
        for row, reason in self.refused.items():
            errors |= dict.fromkeys((rows == row).nonzero()[0].tolist(), RowError(reason))
        return errors

    def leave(self, row: int) -> None:
        """Forgets what is in a row; a row that is free already stays so."""
        if not self.features[row]:
            return
        self.version += 1
        if self.features[row] & Feature.COUNTS:
            self.counts.clear(row)
        self.features[row] = 0
        if row in self.images:
            self.rope_delta[row : row + 1].fill_(0)
        self.inverse_temperature[row] = 1.0
        self.top_k[row] = self.vocab_size
        for held in self._held:
            held.pop(row, None)

    def keep_tokens(
        self,
        rows: torch.Tensor,
        counted: tuple[np.ndarray, torch.Tensor, torch.Tensor] | None,
        token_ids: torch.Tensor,
    ) -> None:
        """Remembers the tokens that were sampled for `rows`, both int64 [S]; counted: see `SamplingPlan.counted`."""
        self.last_token.index_copy_(0, rows, token_ids)
        if counted is not None:
            counted_rows, entries, rows_on_device = counted
            if not self.counts.lists_any(counted_rows).all():
                self.version += 1
            self.counts.add(counted_rows, rows_on_device, token_ids[entries])

    def decay_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a row with a growing weight of its end tokens: these (int64), the first output number at which it has
        grown less one (int64), the logarithm of its growth with every token (float64)."""
        token_ids = self.end_token_ids[row]
        count = len(token_ids)
        return (token_ids, np.full(count, self.decay_start[row]), np.full(count, self.decay_log_factor[row]))

    def minimum_pairs(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """End tokens (int64) and, for each, the number of tokens that must come first (int64)."""
        token_ids = self.end_token_ids[row]
        return token_ids, np.full(len(token_ids), self.values["min_new_tokens"][row])

    def _join_counts(self, join: JoinRow) -> None:
        params = join.params
        generated = join.history_ids[join.prompt_len :]
        history = join.history_ids[join.history_ids < self.vocab_size]  # without tokens of images
        listed = history if params.input_penalty or params.repetition_counts_prompt else generated
        self.counts.set(join.row, listed, history if params.input_penalty else generated)

    def _token_ids(self, token_ids: list[int]) -> np.ndarray:
        """Distinct ids in their order; those that this model does not have can neither be sampled nor changed."""
        distinct = dict.fromkeys(i for i in token_ids if 0 <= i < self.vocab_size)
        return np.fromiter(distinct, dtype=np.int64)


def _features(params: SamplingParams, vocab_size: int) -> int:
    filters = 0 < params.top_k < vocab_size or params.top_p < 1.0 or params.min_p > 0.0
    penalties = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
    wanted = {
        Feature.RANDOM: not params.greedy,
        Feature.FILTER: not params.greedy and filters,
        Feature.COUNTS: penalties != (1.0, 0.0, 0.0),
        Feature.DECAY: params.exponential_decay_length_penalty[1] != 1.0,
        Feature.MIN_NEW: params.min_new_tokens > 1,
        Feature.BIAS: bool(params.logit_bias),
        Feature.ALLOWED: bool(params.allowed_token_ids),
        Feature.CONSTRAINED: params.constrained,
        Feature.RAW: params.raw_logprobs and params.logprobs >= 0,
        Feature.TOP: params.logprobs > 0,
        Feature.PROMPT: params.prompt_logprobs >= 0,
        Feature.SILENT: params.logprobs < 0,
    }
    return sum(feature for feature, asked in wanted.items() if asked)

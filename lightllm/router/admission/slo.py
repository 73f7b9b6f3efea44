"""`--tpot_slo`: rounds are no longer than promised, by the round times that have been learned."""

from __future__ import annotations

import dataclasses

from lightllm.router.admission.step_time import StepTimeModel
from lightllm.router.scheduler_config import SchedulerConfig

LEAST_CHUNK = 16
"""Prompt tokens that --tpot_slo leaves a round at least: prompts get on, however tight it is."""
HEADROOM = 0.9
"""Share of --tpot_slo that a round is planned for."""


@dataclasses.dataclass(eq=False)
class SloController:
    """How long a round is, and how many share it; costs nothing where the option is not given."""

    _config: SchedulerConfig
    _times: StepTimeModel

    def __post_init__(self) -> None:
        self._tpot = self._config.options.tpot_slo

    def round_tokens(self, rows: int, budget: int, held: int) -> int:
        """The tokens of a round with `rows` decode rows that hold `held` tokens: `budget`, or fewer that keep the time."""
        if not self._tpot or not rows:
            return budget
        most = self._times.most_tokens(held, HEADROOM * self._tpot, budget)
        return min(budget, max(most, rows + LEAST_CHUNK))

    def capacity(self, rows: int) -> int:
        """The slots that `rows` requests may hold, so that a round of theirs with a small chunk keeps the time."""
        if not self._tpot:
            return self._config.max_total_token_num
        held = self._times.most_held(rows + LEAST_CHUNK, HEADROOM * self._tpot)
        return int(min(held, self._config.max_total_token_num))

"""How long outputs are expected to be when requests are admitted (`--schedule_policy`).

    conservative   as long as max_new_tokens says: never runs out of memory, fills it badly
    aggressive     one token more for each request, so that what is held now counts: fills it, and pauses often
    past_future    as long as recent outputs were, given what has been generated already

`--router_token_ratio` selects LightLLM's own rule instead: short while there is room, then conservative.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm.router.admission.demand import Demand
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.usage import ExpectedUsage, KnownUsage
from lightllm.router.scheduler_config import SchedulerConfig

CAUTION = 2.0
"""Standard deviations of the memory in use that past_future leaves free. On a full server of 70 long outputs, 1 instead of 2
makes five times as many requests pause, for no more throughput; 120 slots in 1000 are left free, or 90."""


class AdmissionPolicy:
    """What a forecast expects of outputs; unless a policy says otherwise, that each is as long as it may be. Policies keep
    nothing: what is known of recent outputs comes with the call."""

    may_err = True
    """Predictions may fail, so that requests pause: nothing need be certain."""

    def outputs_to_come(self, demand: Demand, used: float) -> np.ndarray:
        """int64 [n]: further outputs of each request, from 0 to limit - generated. `used`: the share of the memory that
        requests need now."""
        return demand.limit - demand.generated

    def usage(self, lengths: OutputLengths) -> KnownUsage | ExpectedUsage:
        """How memory is foreseen, with no request in it yet."""
        return KnownUsage()


class Conservative(AdmissionPolicy):
    """Every request runs to max_new_tokens."""

    may_err = False


class Aggressive(AdmissionPolicy):
    """What is held now counts, and one token more for each request."""

    def outputs_to_come(self, demand: Demand, used: float) -> np.ndarray:
        return np.minimum(demand.limit - demand.generated, 1)


@dataclasses.dataclass(frozen=True)
class PastFuture(AdmissionPolicy):
    """Outputs will be as long as recent ones were, given what has been generated already.

    The idea is that of "Past-Future Scheduler for LLM Serving under SLA Guarantees" (ASPLOS 2025), where in every round
    a length is drawn for each request from those of recent outputs, and a fixed share of the memory is left free for
    unlucky draws. Here every forecast takes the mean and the variance over all possible draws (`ExpectedUsage`): there is
    no luck, nothing to seed, and what is left free follows from how much is unknown.
    """

    caution: float = CAUTION

    def usage(self, lengths: OutputLengths) -> ExpectedUsage:
        return ExpectedUsage(lengths, self.caution)


@dataclasses.dataclass(frozen=True)
class TokenRatio(AdmissionPolicy):
    """While less than `ratio` of the memory is in use, outputs are expected to have no more than `max_new_token_len`
    tokens, or a tenth more than they have; from there on, and where EOS is ignored, as many as they may."""

    ratio: float
    max_new_token_len: int

    def outputs_to_come(self, demand: Demand, used: float) -> np.ndarray:
        generated, limit = demand.generated, demand.limit
        if used >= self.ratio:
            return limit - generated
        expected = np.maximum(generated * 11 // 10, self.max_new_token_len)
        return np.where(demand.exact, limit, np.minimum(limit, expected)) - generated


def make_policy(config: SchedulerConfig) -> AdmissionPolicy:
    """The one that the options name."""
    if config.options.router_token_ratio > 0.0:
        return TokenRatio(config.options.router_token_ratio, config.options.router_max_new_token_len)
    policies: dict[str, AdmissionPolicy] = {
        "conservative": Conservative(),
        "aggressive": Aggressive(),
        "past_future": PastFuture(),
    }
    return policies[config.options.schedule_policy]

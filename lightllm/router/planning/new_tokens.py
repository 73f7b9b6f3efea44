"""What a result brings: the tokens that count, for the requests that are still in their rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm.protocol.messages import TopLogprobs
from lightllm.protocol.rounds import RoundResult
from lightllm.router.planning.planned_round import PlannedRound
from lightllm.router.planning.running import Running


@dataclasses.dataclass(slots=True)
class NewTokens:
    """In the order of the round, t tokens in all; those of one request are neighbours."""

    rows: np.ndarray
    """int64 [t]"""
    token_ids: np.ndarray
    logprobs: np.ndarray
    top: dict[int, TopLogprobs]
    """Place among these tokens -> alternatives."""
    counts: np.ndarray
    """int [entries of the round]: how many are from each."""
    ended: list[int]
    """Entries whose last token here ends their request."""
    alive: np.ndarray
    """bool [entries]: whose request is still in its row."""

    @classmethod
    def of(cls, result: RoundResult, planned: PlannedRound, running: Running) -> NewTokens:
        """What follows a token that ends its request is discarded, as is everything for a request that has left."""
        alive = running.alive(planned)
        ends = running.end_tokens.match(result.token_ids)
        if (
            not ends and planned.tokens == len(planned.rows) == len(result.token_ids) and alive.all()
        ):  # as most
            return cls(planned.rows, result.token_ids, result.logprobs, result.top, planned.q_len, [], alive)
        entries = planned.samples.nonzero()[0]
        if len(result.counts):
            entries = np.repeat(entries, result.counts)
        tokens, keep, ended = result.token_ids, alive[entries], []
        for place in ends:
            entry = int(entries[place])
            request = running.by_row[planned.rows[entry]]
            if keep[place] and request is not None and int(tokens[place]) in request.end_token_ids:
                ended.append(entry)
                keep[place + 1 :] &= entries[place + 1 :] != entry
        top, counts = result.top, np.bincount(entries[keep], minlength=len(alive))
        if top:
            place_of = np.cumsum(keep) - 1
            top = {int(place_of[i]): alternatives for i, alternatives in top.items() if keep[i]}
        return cls(
            planned.rows[entries[keep]], tokens[keep], result.logprobs[keep], top, counts, ended, alive
        )


def is_answer(result: RoundResult, planned: PlannedRound) -> bool:
    """Whether the arrays of a result fit the round: a token for each entry that samples, or up to `q_len` for one that
    decodes."""
    sampled, total = planned.sampled, len(result.token_ids)
    if total != len(result.logprobs):
        return False
    if not len(result.counts):
        return total == sampled
    if len(result.counts) != sampled or total != int(result.counts.sum()) or result.counts.min() < 1:
        return False
    most = np.where(np.arange(len(planned.rows)) < planned.num_decode, planned.q_len, 1)
    return bool((result.counts <= most[planned.samples == 1]).all())

"""Which tokens the rows of a round may sample, where requests constrain their output. Rank 0 only: it samples.

A row's mask follows from what the row has said, its last token included. So the masks of round t + 1 need the tokens of
round t on the host: they are asked for as late as possible, when the model's work for t + 1 is on the device already.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from lightllm.backend.device import Arrival
from lightllm.backend.sampling_plan import Constrained
from lightllm.protocol.rounds import JoinRow
from lightllm.tokenizer.constraints import Matchers

if TYPE_CHECKING:
    from llguidance import LLMatcher

logger = logging.getLogger(__name__)

_ANYTHING = -1
"""A word of a mask with every bit set."""


@dataclasses.dataclass(frozen=True)
class RoundMasks:
    """For the c constrained rows of a round."""

    bits: np.ndarray
    """int32 [c, words]: as `Matchers.masks` makes them."""
    errors: dict[int, str]
    """Position among all rows of the round that sample -> why this one cannot go on."""


@dataclasses.dataclass(frozen=True)
class _Awaited:
    """Tokens on their way to the host, and who has to hear them."""

    arrival: Arrival
    positions: list[int]
    matchers: list[LLMatcher]


class ConstraintMasks:
    """The matchers of the rows. `load` makes what makes them, in a thread that starts at once; None as its outcome: this
    server has none."""

    def __init__(self, load: Callable[[], Matchers | None]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._maker = self._thread.submit(load)
        self._rows: dict[int, Future[LLMatcher]] = {}
        self._awaited: _Awaited | None = None

    def wait_until_loaded(self) -> None:
        """Raises what `load` raised."""
        self._maker.result()

    def join(self, join: JoinRow) -> None:
        """A request enters a row. Its matcher is made while its prompt is computed."""
        self.leave(join.row)
        if join.params.constrained:
            self._rows[join.row] = self._thread.submit(self._open, join)

    def leave(self, row: int) -> None:
        self._rows.pop(row, None)

    def masks(self, constrained: Constrained | None) -> RoundMasks | None:
        """For the constrained rows of a round whose logits are being computed; None if there are none."""
        self._hear()
        if constrained is None:
            return None
        maker = self._maker.result()
        opened: list[LLMatcher] = []
        errors: dict[int, str] = {}
        for position, row in zip(constrained.positions, constrained.rows.tolist(), strict=True):
            try:
                opened.append(self._rows[row].result())
            except Exception as error:  # of this request, not of the round
                errors[position] = str(error) or type(error).__name__
        words = 1 if maker is None else maker.words
        bits = np.full((len(constrained.positions), words), _ANYTHING, dtype=np.int32)
        if maker is not None and opened:
            good = [i for i, position in enumerate(constrained.positions) if position not in errors]
            masks = maker.masks(opened)
            for i, matcher, mask in zip(good, opened, masks, strict=True):
                if matcher.is_error():
                    errors[constrained.positions[i]] = _message(matcher)
                elif not mask.any():
                    errors[constrained.positions[i]] = "no token of the model's vocabulary can come next"
                else:
                    bits[i] = mask
        return RoundMasks(bits, errors)

    def expect(self, constrained: Constrained | None, masks: RoundMasks | None, arrival: Arrival) -> None:
        """The tokens of these rows are the first array that `arrival` brings."""
        if constrained is None or masks is None:
            return
        heard = [
            (position, self._rows[row].result())
            for position, row in zip(constrained.positions, constrained.rows.tolist(), strict=True)
            if position not in masks.errors
        ]
        self._awaited = _Awaited(arrival, [position for position, _ in heard], [m for _, m in heard])

    def resync(self) -> None:
        """After a failed round: its rows are joined anew, and what it has not brought is void."""
        try:
            self._hear()
        except Exception:
            logger.debug("the tokens of the failed round have not come")

    def _hear(self) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is None:
            return
        tokens = awaited.arrival.arrays()[0]
        for position, matcher in zip(awaited.positions, awaited.matchers, strict=True):
            matcher.consume_token(int(tokens[position]))

    def _open(self, join: JoinRow) -> LLMatcher:
        maker = self._maker.result()
        if maker is None:
            raise RuntimeError("this server was started without constrained decoding")
        return maker.open(join.params, join.history_ids[join.prompt_len :])


def _message(matcher: LLMatcher) -> str:
    return f"the constraint cannot be followed any further: {' '.join(matcher.get_error().split())[:200]}"

"""Which tokens the rows of a round may sample, where requests constrain their output. Rank 0 only: it samples.

A row's mask follows from what the row has said, its last token included. So the masks of round t + 1 need the tokens of
round t on the host: they are asked for as late as possible, when the model's work for t + 1 is on the device already.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from lightllm.backend.device import HostCopy
from lightllm.backend.sampling_plan import Constrained
from lightllm.config import ServerConfig
from lightllm.constraints.deep_threads import deep_threads
from lightllm.constraints.grammars import Constraint, is_installed
from lightllm.constraints.matchers import Matcher, Matchers
from lightllm.errors import StartupError
from lightllm.model_folder.config import eos_token_ids
from lightllm.protocol.rounds import JoinRow
from lightllm.tokenizer.loading import load_tokenizer

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
    matchers: dict[int, Matcher] = dataclasses.field(default_factory=dict)
    """Likewise, of those that go on: matchers that take the token."""


class ConstraintMasks:
    """The matchers of the rows. `load` makes what makes them, in a thread that starts at once; or says why there is
    nothing."""

    def __init__(self, load: Callable[[], Matchers | str]) -> None:
        self._thread = deep_threads(1, "constraints")
        self._maker = self._thread.submit(load)
        self._rows: dict[int, Future[Matcher]] = {}
        self._awaited: tuple[HostCopy, dict[int, Matcher]] | None = None
        """Tokens on their way to the host, and the matchers that take them."""

    def wait_until_loaded(self) -> None:
        """Raises what `load` raised."""
        self._maker.result()

    def prepare(self, constraint: Constraint, grammar: str) -> Future[LLMatcher] | None:
        """As `Matchers.prepare`, from any thread."""
        maker = self._maker.result()
        return None if isinstance(maker, str) else maker.prepare(constraint, grammar)

    def join(self, join: JoinRow) -> None:
        """A request enters a row. Its matcher is made while its prompt is computed."""
        self.leave(join.row)
        if join.params.constrained:
            self._rows[join.row] = self._thread.submit(self._open, join)

    def leave(self, row: int) -> None:
        matcher = self._rows.pop(row, None)
        if matcher is not None:
            matcher.cancel()  # if it is not being made yet

    def masks(self, constrained: Constrained | None, vocab_size: int) -> RoundMasks | None:
        """For the constrained rows of a round whose logits are being computed; None if there are none. vocab_size: of the
        model; its tokenizer may have more tokens."""
        if constrained is None:
            return None
        self._hear()
        maker = self._maker.result()
        opened: dict[int, Matcher] = {}
        errors: dict[int, str] = {}
        for position, row in zip(constrained.positions, constrained.rows.tolist(), strict=True):
            try:
                opened[position] = self._rows[row].result()
            except Exception as error:  # of this request, not of the round
                errors[position] = str(error) or type(error).__name__
        words = 1 if isinstance(maker, str) else maker.words
        bits = np.full((len(constrained.positions), words), _ANYTHING, dtype=np.int32)
        if isinstance(maker, str) or not opened:
            return RoundMasks(bits, errors)
        place = {position: i for i, position in enumerate(constrained.positions)}
        for (position, matcher), mask in zip(opened.items(), maker.masks(list(opened.values())), strict=True):
            if matcher.is_error():
                errors[position] = _message(matcher)
            elif not _allows_any(mask, vocab_size):
                errors[position] = "no token of the model's vocabulary can come next"
            else:
                bits[place[position]] = mask
        going_on = {position: matcher for position, matcher in opened.items() if position not in errors}
        return RoundMasks(bits, errors, going_on)

    def expect(self, masks: RoundMasks | None, arrival: HostCopy) -> None:
        """The tokens of the round with these masks are the first array that `arrival` brings."""
        if masks is not None:
            self._awaited = arrival, masks.matchers

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
        arrival, matchers = awaited
        tokens = arrival.arrays()[0]
        for position, matcher in matchers.items():
            matcher.consume_token(int(tokens[position]))

    def _open(self, join: JoinRow) -> Matcher:
        maker = self._maker.result()
        if isinstance(maker, str):
            raise RuntimeError(f"constraints cannot be obeyed: {maker}")
        return maker.open(join.params, join.history_ids[join.prompt_len :])


def _allows_any(mask: np.ndarray, vocab_size: int) -> bool:
    """Whether a bit below `vocab_size` is set in int32 [words]."""
    whole, rest = divmod(vocab_size, 32)
    return bool(mask[:whole].any()) or bool((mask[whole : whole + 1] & ((1 << rest) - 1)).any())


def _message(matcher: Matcher) -> str:
    said = matcher.get_error().removesuffix("<non-verbose/>")
    return f"the constraint cannot be followed any further: {' '.join(said.split())[:200]}"


def load_matchers(config: ServerConfig, rank: int) -> Matchers | str:
    """What makes the matchers of this server's requests, or why there is nothing. A tokenizer that cannot be read is no
    reason not to start: others need it more, and say so."""
    if config.output_constraint_mode == "none":
        return "this server was started with --output_constraint_mode none"
    if rank or config.pools or not is_installed():
        return "this server has nothing that could do it"
    assert config.model_dir is not None
    try:
        eos = eos_token_ids(config.model_dir, config.eos_id)
        if not eos:
            return "the model has no token that ends an output"
        tokenizer = load_tokenizer(
            config.model_dir, trust_remote_code=config.trust_remote_code, with_chat_template=False
        )
        return Matchers(tokenizer, eos)
    except NotImplementedError as error:
        return str(error)
    except Exception as error:
        logger.warning("no constrained decoding: %s", error, exc_info=not isinstance(error, StartupError))
        return "the model's tokenizer cannot be read"

"""A round that a backend has taken on: it may be computed already, or still be under way."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from lightllm.protocol.rounds import RoundResult


class PendingResult(Protocol):
    def ready(self) -> bool:
        """Whether `result` would not wait."""

    def wait(self) -> None:
        """Until it is ready; may be called from any thread."""

    def result(self) -> RoundResult:
        """Waits for it. Raises what went wrong on the way."""


@dataclasses.dataclass(frozen=True)
class Computed:
    """A result that is there."""

    _result: RoundResult

    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def result(self) -> RoundResult:
        return self._result

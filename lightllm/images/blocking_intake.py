"""`Intake` for a caller that waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from lightllm.images.intake import Intake
from lightllm.images.limits import ImageLimits

_T = TypeVar("_T")


class BlockingIntake:
    """Its event loop runs in a thread of its own: the caller may be inside one (a notebook)."""

    def __init__(self, limits: ImageLimits) -> None:
        self._intake = Intake(limits)
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        self._thread = threading.Thread(target=_serve, args=(runner,), name="image-intake", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[Intake], Coroutine[Any, Any, _T]]) -> _T:
        """The result of `work`, which is cancelled when the caller is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work(self._intake), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._intake.close()


def _serve(runner: asyncio.Runner) -> None:
    with runner:  # which ends what was cancelled but is not done
        runner.get_loop().run_forever()

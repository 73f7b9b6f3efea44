"""Chooses, counts, and gives back: a request's way through registry and policy.

with dispatcher.send(ask) as ticket:     the load counts from here, before anything is sent
    ... ticket.worker ...                ticket.answered() with the first byte
                                         and from here on no more, whatever has happened
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from lightllm.cluster.ask import Ask
from lightllm.cluster.dispatch.policy import Policy
from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import State, Ticket, Worker
from lightllm.errors import ServerOverloaded, UnknownModel

_RETRY_SECONDS = 2


class NoWorker(ServerOverloaded, code="no_worker"):
    """The model is known, but nobody can take a request for it now."""


class AllFull(NoWorker, code="no_worker"):
    """As soon as a request ends, there is room."""


class Dispatcher:
    def __init__(self, registry: Registry, policy: Policy, clock: Callable[[], float]) -> None:
        self.registry = registry
        self.policy = policy
        self.now = clock
        self.on_room: list[Callable[[], object]] = []
        """Called when a worker may have room that had none."""
        registry.on_gone.append(policy.gone)
        registry.on_room.append(self._room)

    def send(
        self, ask: Ask, without: Collection[Worker] = (), kind: str = "", holder: Worker | None = None
    ) -> Ticket:
        """without: workers that have been tried; kind: of the workers that may take it, "": any; holder: the only one that can,
        also while it drains. What goes on with something (kind, holder) is sent to a full worker, too. Raises `UnknownModel` or `NoWorker`."""
        now = self.now()
        able = self.registry.candidates(ask.model, now) if holder is None else self._alone(holder, now)
        found = able
        if without or kind:
            found = [
                worker for worker in able if worker not in without and kind in ("", worker.description.kind)
            ]
        goes_on = bool(kind) or holder is not None
        workers = found if goes_on else [worker for worker in found if not worker.full]
        if not workers:
            raise self._nobody(ask, bool(found))
        worker = self.policy.choose(workers, ask)
        cached = self.policy.cached_tokens(worker, ask)
        worker.prompt_tokens += ask.prompt_tokens
        worker.cached_tokens += min(cached, ask.prompt_tokens)
        self.policy.sent(worker, ask)
        worker.breaker.sending(now)
        return Ticket(worker, ask.prompt_tokens - cached, ask.output_tokens, ask.prompt_tokens, self._room)

    def _room(self) -> None:
        for tell in self.on_room:
            tell()

    def _alone(self, holder: Worker, now: float) -> Sequence[Worker]:
        return [holder] if holder.state is not State.OUT and holder.breaker.allows(now) else []

    def _nobody(self, ask: Ask, full: bool) -> NoWorker | UnknownModel:
        if not len(self.registry):
            return NoWorker("no worker has registered yet", retry_after=_RETRY_SECONDS)
        known = any(ask.model in worker.description.model_names for worker in self.registry)
        if not known:
            return UnknownModel(f"no worker serves the model {ask.model[:100]!r}", param="model")
        if full:
            return AllFull(
                f"all workers of {ask.model!r} have as many requests as they take", retry_after=_RETRY_SECONDS
            )
        draining = any(
            worker.state is State.DRAINING and ask.model in worker.description.model_names
            for worker in self.registry
        )
        reason = "are stopping" if draining else "do not answer"
        return NoWorker(f"the workers of {ask.model!r} {reason}", retry_after=_RETRY_SECONDS)

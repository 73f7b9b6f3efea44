"""Who is there: every change of a worker's state happens here, at once and in one thread; the clock is the caller's.

A worker is found by its URL. Registering again (after either side was started anew) replaces what it said of itself and
keeps what this controller counts: requests that are under way still end, and give back what they took.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence

from lightllm.cluster.breaker import Breaker, Limits
from lightllm.cluster.worker import Description, Report, State, Worker
from lightllm.errors import RequestError

_log = logging.getLogger(__name__)


class UnknownWorker(RequestError, status=404, code="worker_not_found"):
    """No worker is registered under this URL."""


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds without a sign of life."""

    suspect: float = 8.0
    """Until a worker is suspected."""
    out: float = 15.0
    """Until it is out."""
    forget: float = 600.0
    """Until it is forgotten."""


class Registry:
    def __init__(self, patience: Patience | None = None, limits: Limits | None = None) -> None:
        self.patience = patience or Patience()
        self._limits = limits
        self._workers: dict[str, Worker] = {}
        self._drained: set[str] = set()
        """URLs that an operator has drained, whoever is there: until an operator says otherwise."""
        self._open: set[Breaker] = set()
        """Circuit breakers that are."""
        self._ready: dict[str, Sequence[Worker]] = {}
        """By model, as it was asked for: its workers that are ready."""
        self.on_gone: list[Callable[[Worker], object]] = []
        """Told of each worker whose memory is lost: it was removed, is out, or was started anew."""
        self.on_dead: list[Callable[[Worker], object]] = []
        """Told of each worker that ends nothing any more: it is out, or was started anew."""

        self.on_room: list[Callable[[], object]] = []
        """Called when a worker may take requests that took none."""

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def get(self, url: str) -> Worker:
        """Raises `UnknownWorker`."""
        worker = self._workers.get(url)
        if worker is None:
            raise UnknownWorker(f"no worker is registered under {url}")
        return worker

    def register(self, description: Description, now: float) -> Worker:
        worker = self._workers.get(description.url)
        self._ready.clear()
        if worker is None:
            worker = self._workers[description.url] = Worker(
                description, now, Breaker(self._limits, self._open)
            )
            _log.info("worker %s serves %s", description.url, ", ".join(description.model_names))
            self._alive(worker)
            self._room()
            return worker
        if worker.description.worker_id != description.worker_id:
            self._lost(worker)
            self._dead(worker)
            worker.breaker.succeeded()
        worker.description = description
        worker.count()
        worker.last_heard = now
        self._alive(worker)
        self._room()
        return worker

    def heartbeat(self, url: str, report: Report, now: float, worker_id: str = "") -> bool:
        """False: it is not registered (or another life of it is), and should register."""
        worker = self._workers.get(url)
        if worker is None or (worker_id and worker.description.worker_id != worker_id):
            return False
        worker.heard(report, now)
        self._alive(worker)
        self._room()
        return True

    def unreachable(self, worker: Worker, now: float) -> None:
        """A connection to it failed."""
        worker.breaker.failed(now)
        if worker.state is State.READY:
            self._become(worker, State.SUSPECT)
        self._room()

    def probed(self, worker: Worker, answered: bool, now: float) -> None:
        """The result of a question for a sign of life."""
        if answered:
            worker.last_heard = now
            if worker.state in (State.SUSPECT, State.OUT):
                self._alive(worker)
        elif worker.state is State.READY:
            self._become(worker, State.SUSPECT)
        elif worker.state is State.SUSPECT or now - worker.last_heard > self.patience.out:
            self._become(worker, State.OUT)

    def expire(self, now: float) -> list[Worker]:
        """Looks at the clock for all workers; those that want a probe: suspects, those that are out, and those without beats."""
        probes = []
        for worker in self:
            silent = now - worker.last_heard
            if silent > self.patience.forget and not worker.in_flight:
                self.remove(worker.url)
                continue
            if silent > self.patience.out and worker.state is not State.OUT:
                self._become(worker, State.OUT)
            elif silent > self.patience.suspect and worker.state is State.READY:
                self._become(worker, State.SUSPECT)
            beats = worker.description.heartbeats
            if worker.state in (State.SUSPECT, State.OUT) or not beats:
                probes.append(worker)
        self._room()  # a circuit breaker may let one through by now
        return probes

    def drain(self, url: str, draining: bool = True) -> Worker:
        """Nothing new is sent to it, or again: an order that outlives registrations, and the worker. Raises `UnknownWorker`."""
        worker = self.get(url)
        (self._drained.add if draining else self._drained.discard)(url)
        if worker.state is not State.OUT:
            self._alive(worker)
        return worker

    def dismiss(self, url: str) -> None:
        """An operator removes it; another one at this URL is a new one. Raises `UnknownWorker`."""
        self.remove(url)
        self._drained.discard(url)

    def remove(self, url: str) -> None:
        """Raises `UnknownWorker`. What runs on it may end."""
        worker = self.get(url)
        del self._workers[url]
        self._ready.clear()
        self._open.discard(worker.breaker)
        worker.state = State.OUT
        self._lost(worker)
        _log.info("worker %s has left", url)
        self._room()

    def models(self) -> list[str]:
        """Names that a request may give now, sorted."""
        here = (worker for worker in self if worker.state is not State.OUT)
        return sorted({name for worker in here for name in worker.description.model_names})

    def default_model(self) -> str:
        """Of a request that names none: "" where there has never been a worker."""
        known = (name for worker in self for name in worker.description.model_names)
        return next(iter(self.models()), min(known, default=""))

    def candidates(self, model: str, now: float) -> Sequence[Worker]:
        """Those that may take a request for `model`: the ready ones, else the suspected ones."""
        known = self._ready.get(model)
        if known is None:
            ready = [
                worker
                for worker in self._workers.values()
                if worker.state is State.READY and model in worker.description.model_names
            ]
            known = ready
            if ready:  # else any name that a client makes up would be kept
                self._ready[model] = ready
        allowed = [worker for worker in known if worker.breaker.allows(now)] if self._open else known
        if allowed:
            return allowed
        return [
            worker
            for worker in self._workers.values()
            if worker.state is State.SUSPECT
            and model in worker.description.model_names
            and worker.breaker.allows(now)
        ]

    def _alive(self, worker: Worker) -> None:
        """A sign of life: it takes requests, unless it is not to."""
        drains = worker.url in self._drained or worker.report.draining
        self._become(worker, State.DRAINING if drains else State.READY)

    def _become(self, worker: Worker, state: State) -> None:
        if worker.state is state:
            return
        _log.info("worker %s: %s -> %s", worker.url, worker.state.value, state.value)
        worker.state = state
        self._ready.clear()
        if state is State.OUT:
            self._lost(worker)
            self._dead(worker)
        self._room()  # where no worker is ready those that are suspected take requests

    def _room(self) -> None:
        for tell in self.on_room:
            tell()

    def _dead(self, worker: Worker) -> None:
        for tell in self.on_dead:
            tell(worker)

    def _lost(self, worker: Worker) -> None:
        worker.foreign = 0
        worker.report = Report()
        worker.count()
        for tell in self.on_gone:
            tell(worker)

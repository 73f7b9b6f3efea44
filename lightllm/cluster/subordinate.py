"""A controller as the worker of other controllers: to them it is one server with the models, the speed and the memory of all its
workers."""

from __future__ import annotations

import secrets

from lightllm.cluster.agent import Above, Agent
from lightllm.cluster.registry import Registry
from lightllm.cluster.waiting import WaitingRoom
from lightllm.cluster.worker import State, Worker
from lightllm.cluster.worker_messages import Beat, Registration

KIND = "controller"


class Subordinate:
    """To be made and closed in the event loop."""

    def __init__(self, above: Above, url: str, registry: Registry, waiting: WaitingRoom) -> None:
        """url: where the others reach this controller."""
        self._url = url
        self._registry = registry
        self._waiting = waiting
        self._id = secrets.token_hex(4)
        self._told: Registration | None = None
        self._agent = Agent(above, self._registration, self._beat)

    async def close(self) -> None:
        await self._agent.close()

    async def _registration(self) -> Registration | None:
        """None while no worker is there."""
        self._told = self._describe()
        return self._told

    async def _beat(self) -> Beat:
        if self._told is not None and self._describe() not in (None, self._told):
            self._agent.register_again()
        here = self._here
        running, waiting = sum(worker.requests for worker in here), len(self._waiting)
        uses = [worker.report.kv_use for worker in here]
        return Beat(
            self._url, running + waiting, self._id, running, waiting, sum(worker.prefill_tokens for worker in here),
            sum(uses) / max(1, len(uses)),
        )  # fmt: skip

    def _describe(self) -> Registration | None:
        here, names = self._here, self._registry.models()
        if not here or not names:
            return None
        capacities = [worker.description.capacity for worker in here]
        speed = sum(worker.description.speed for worker in here)
        return Registration(
            worker_name=self._url,
            worker_status={"model_names": names, "speed": speed, "queue_length": 0},
            multimodal=any(worker.description.multimodal for worker in here),
            worker_id=self._id,
            kind=KIND,
            capacity=sum(capacities) if all(capacities) else 0,
            kv_tokens=sum(worker.description.kv_tokens for worker in here),
        )

    @property
    def _here(self) -> list[Worker]:
        return [worker for worker in self._registry if worker.state in (State.READY, State.SUSPECT)]

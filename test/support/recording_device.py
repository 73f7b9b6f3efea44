"""A CPU that behaves like a GPU where the backend can tell: graphs that replay, results that come late, one way to sample."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lightllm.backend.device import Arrived, CpuDevice
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig


class RecordedGraph:
    """What `torch.cuda.CUDAGraph` is to its user: it runs the captured work again, on the memory that was captured.

    The work is a closure of the time of capture: whatever it took from the host then is what every replay sees."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.replays = 0
        work()

    def replay(self) -> None:
        self.replays += 1
        self._work()


class LateArrival:
    """Results that are there once `RecordingDevice.deliver` says so, or when somebody insists."""

    def __init__(self, results: list[np.ndarray]) -> None:
        self._results = results
        self.delivered = False
        self.error: Exception | None = None

    def ready(self) -> bool:
        return self.delivered

    def wait(self) -> None:
        self.delivered = True

    def arrays(self) -> list[np.ndarray]:
        self.wait()
        if self.error is not None:
            raise self.error
        return self._results


class RecordingDevice(CpuDevice):
    """late: results wait for `deliver`."""

    captures = True
    samples_in_one_kernel = True

    def __init__(self, late: bool = False) -> None:
        super().__init__()
        self.late = late
        self.graphs: list[RecordedGraph] = []
        self.under_way: deque[LateArrival] = deque()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.graphs.append(RecordedGraph(work))
        return self.graphs[-1].replay

    def download(self, tensors: Sequence[torch.Tensor]) -> Arrived | LateArrival:  # type: ignore[override]
        results = [tensor.clone().numpy() for tensor in tensors]
        if not self.late:
            return Arrived(results)
        self.under_way.append(LateArrival(results))
        return self.under_way[-1]

    def deliver(self, error: Exception | None = None) -> None:
        """The oldest results that nobody has insisted on arrive, or turn out to be an error."""
        arrival = self.under_way.popleft()
        while arrival.delivered:
            arrival = self.under_way.popleft()
        arrival.error = error
        arrival.delivered = True

    @property
    def replays(self) -> int:
        return sum(graph.replays for graph in self.graphs)


def start_recorded(
    config: ServerConfig, late: bool = False, **options: Any
) -> tuple[ModeBackend, RecordingDevice]:
    """A backend with these options on a device of its own."""
    device = RecordingDevice(late)
    backend = ModeBackend(
        dataclasses.replace(config, **options), 0, 1, open_device=lambda name, index: device
    )
    backend.init_model()
    device.under_way.clear()  # what the warm-up rounds have read
    return backend, device

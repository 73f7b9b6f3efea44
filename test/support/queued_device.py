"""A CPU that works as late as a GPU may: what is enqueued is computed when somebody waits for a result, and not before.

Operations of torch give tensors full of nonsense at once, and their work goes to a queue; kernels under Triton's interpreter
too. So staging memory that is written again before its copy was made, a result that is read before its event, and a buffer that
the next round writes while the last one's results are still to be fetched from it each give other tokens.

Views are made at once, as on a GPU. An operation that asks the device for a value runs the queue first, as a GPU would wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter, tree_map_only
from triton.runtime.interpreter import GridExecutor

from support.graph_reads import ASKING
from support.recording_device import RecordingDevice


class Queue(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._work: deque[Callable[[], object]] = deque()
        self.ran = 0
        """Pieces of work that are done."""

    def put(self, work: Callable[[], object]) -> None:
        self._work.append(work)

    def run(self) -> None:
        """Everything that is enqueued."""
        with _disable_current_modes(), torch.inference_mode():
            while self._work:
                self._work.popleft()()
                self.ran += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        if any(word in func.name() for word in ASKING):
            self.run()
            return func(*args, **kwargs)
        if not tensors or func.is_view or func.name().startswith("aten::_unsafe_view"):
            return func(*args, **kwargs)
        written = _written(func, args, kwargs)
        if written:
            self.put(lambda: func(*args, **kwargs))
            return written[0] if len(written) == 1 else written
        results = tree_map_only(torch.Tensor, _nonsense, _shapes_of(func, args, kwargs))

        def compute() -> None:
            found = func(*args, **kwargs)
            for place, value in zip(tree_iter(results), tree_iter(found), strict=True):
                if isinstance(value, torch.Tensor):
                    place.copy_(value)

        self.put(compute)
        return results


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:
    """The arguments that an operation in place, or with `out`, changes."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args)} | kwargs
    return [
        named[argument.name]
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and argument.name in named
    ]


def _shapes_of(func: Any, args: Any, kwargs: Any) -> Any:
    """The results on the device "meta", which computes shapes alone."""

    def meta(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    with _disable_current_modes():
        args, kwargs = tree_map_only(torch.Tensor, meta, (args, kwargs))
        kwargs = {name: "meta" if name == "device" else value for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _nonsense(shape: torch.Tensor) -> torch.Tensor:
    with _disable_current_modes():
        result = torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype)
        return result.fill_(float("nan") if result.is_floating_point() else 1)


class QueuedArrival:
    def __init__(self, queue: Queue, tensors: Sequence[torch.Tensor]) -> None:
        self._queue, self._tensors = queue, tensors
        with _disable_current_modes():
            self._results = [np.full(tuple(tensor.shape), 1, _numpy_dtype(tensor)) for tensor in tensors]
        self._there = False

    def ready(self) -> bool:
        return self._there

    def wait(self) -> None:
        """The copies wait for what was enqueued before them; what came behind may be done first."""
        if not self._there:
            self._queue.run()
            with _disable_current_modes():
                for result, tensor in zip(self._results, self._tensors, strict=True):
                    result[...] = tensor.numpy()
            self._there = True

    def arrays(self) -> list[np.ndarray]:
        self.wait()
        return self._results


def _numpy_dtype(tensor: torch.Tensor) -> Any:
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype


class QueuedDevice(RecordingDevice):
    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self._queue = queue

    def download(self, tensors: Sequence[torch.Tensor]) -> QueuedArrival:  # type: ignore[override]
        return QueuedArrival(self._queue, list(tensors))

    def synchronize(self) -> None:
        self._queue.run()

    def check(self) -> None:
        self._queue.run()


@contextmanager
def queued(queue: Queue) -> Iterator[None]:
    """Within it torch's operations and interpreted kernels are enqueued."""
    compute = GridExecutor.__call__

    def launch(kernel: GridExecutor, *args: Any, **kwargs: Any) -> None:
        queue.put(lambda: compute(kernel, *args, **kwargs))

    GridExecutor.__call__ = launch  # type: ignore[method-assign]
    try:
        with queue:
            yield
    finally:
        GridExecutor.__call__ = compute  # type: ignore[method-assign]

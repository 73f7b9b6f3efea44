"""The device under a backend: everything in which a GPU and a CPU differ, so that nothing else asks which one it is.

A GPU works through two streams of its own. Rounds are computed on one, in order; results travel to the host on the
other, and the host waits for nothing but their arrival. Host memory that the GPU reads or writes is pinned and never
used twice while a copy is under way (torch's pinned allocator watches over that). On a CPU all of it happens at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple, Protocol

import numpy as np
import torch

from lightllm.errors import DeviceError
from lightllm.machine import available_memory

_ALIGNMENT = 16
"""Bytes: what the widest loads of kernels want of an address."""


class HostCopy(Protocol):
    """Results on their way to the host."""

    def ready(self) -> bool:
        """Whether they are there."""

    def wait(self) -> None:
        """Until they are; may be called from any thread."""

    def arrays(self) -> list[np.ndarray]:
        """The results; waits for them."""


class DeviceMemory(NamedTuple):
    """Bytes that are free for this process, and of the whole device."""

    free: int
    total: int


class Device(Protocol):
    torch_device: torch.device
    captures: bool
    """Whether work can be recorded once and replayed with one launch."""
    measures: bool
    """Whether memory is sized by running the largest round; a CPU would take seconds for it."""

    samples_in_one_kernel: bool
    """Whether greedy, random and filtered rows are cheapest together; on a CPU each kind is computed by itself."""

    def activate(self) -> None:
        """What the calling thread enqueues from now on goes to the compute stream."""

    def staging(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] of host memory from which `copy_(..., non_blocking=True)` to the device does not block."""

    def download(self, tensors: Sequence[torch.Tensor]) -> HostCopy:
        """Sends tensors to the host as soon as what is enqueued so far has computed them."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Records `work`, which has run before with the same shapes; the result replays it on the same memory."""

    def named(self, name: str) -> AbstractContextManager[object]:
        """Around work that shows under this name in the traces of profilers."""

    def memory(self) -> DeviceMemory: ...

    def peak_during(self, work: Callable[[], object]) -> int:
        """Bytes that `work` allocates beyond what is allocated now, at its peak."""

    def synchronize(self) -> None:
        """Waits for everything that any thread has enqueued."""

    def check(self) -> None:
        """After an error. Raises `DeviceError` if it is of those that stay: an illegal access, say, after which every operation
        of this process fails and nothing on the device can be relied on."""

    def release_cached(self) -> None:
        """Gives memory that nothing uses back to the device."""


class StagingBuffer:
    """Arrays that travel to the device together: one staging buffer, one copy."""

    def __init__(self, shapes: Sequence[tuple[int, np.dtype]]) -> None:
        """shapes: length and dtype of each array."""
        self._places: list[tuple[int, int, np.dtype, torch.dtype]] = []
        start = 0
        for length, dtype in shapes:
            stop = start + length * dtype.itemsize
            self._places.append((start, stop, dtype, _TORCH_DTYPES[dtype]))
            start = -(-stop // _ALIGNMENT) * _ALIGNMENT
        self.nbytes = start

    def send(self, device: Device, arrays: Sequence[np.ndarray], room: torch.Tensor) -> None:
        """Copies the arrays into `room`, uint8 [>= nbytes] on the device. They are converted to the packet's dtypes."""
        staging = device.staging(self.nbytes)
        host = staging.numpy()
        for (start, stop, dtype, _), array in zip(self._places, arrays, strict=True):
            host[start:stop].view(dtype)[:] = array
        room[: self.nbytes].copy_(staging, non_blocking=True)

    def views(self, room: torch.Tensor) -> list[torch.Tensor]:
        """The arrays inside `room`; they change with every packet that is sent there."""
        return [room[start:stop].view(dtype) for start, stop, _, dtype in self._places]


_TORCH_DTYPES = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


def upload(device: Device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """New tensors on the device with one copy, without waiting for it. Arrays: one-dimensional or rows of a matrix."""
    packet = StagingBuffer([(array.size, array.dtype) for array in arrays])
    room = torch.empty(packet.nbytes, dtype=torch.uint8, device=device.torch_device)
    packet.send(device, [array.reshape(-1) for array in arrays], room)
    return [view.view(array.shape) for view, array in zip(packet.views(room), arrays, strict=True)]


class CpuDevice:
    """Everything at once, in the calling thread."""

    captures = False
    measures = False
    samples_in_one_kernel = False

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")

    def activate(self) -> None:
        pass

    def staging(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def download(self, tensors: Sequence[torch.Tensor]) -> HostCopy:
        return Arrived([tensor.numpy() for tensor in tensors])

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        raise NotImplementedError("a CPU has no graphs")

    def named(self, name: str) -> AbstractContextManager[object]:
        return torch.profiler.record_function(name)

    def memory(self) -> DeviceMemory:
        available = available_memory()
        return DeviceMemory(available, available)

    def peak_during(self, work: Callable[[], object]) -> int:
        raise NotImplementedError("a CPU's activations are computed from shapes")

    def synchronize(self) -> None:
        pass

    def check(self) -> None:
        pass

    def release_cached(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Arrived:
    """Results that are on the host."""

    results: list[np.ndarray]

    def ready(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def arrays(self) -> list[np.ndarray]:
        return self.results


class CudaDevice:
    captures = True
    measures = True
    samples_in_one_kernel = True

    def __init__(self, index: int) -> None:
        torch.cuda.set_device(index)
        self.torch_device = torch.device("cuda", index)
        self._compute = torch.cuda.Stream()
        self._copy = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def activate(self) -> None:
        torch.cuda.set_stream(self._compute)

    def staging(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def download(self, tensors: Sequence[torch.Tensor]) -> HostCopy:
        self._copy.wait_stream(self._compute)
        copies = []
        with torch.cuda.stream(self._copy):
            for tensor in tensors:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies.append(copy.copy_(tensor, non_blocking=True))
                tensor.record_stream(self._copy)
            event = torch.cuda.Event(blocking=True)  # the waiting thread sleeps instead of spinning
            event.record(self._copy)
        return _CudaArrival(copies, event, self.torch_device)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        # torch.cuda.graph would collect garbage before each of dozens of captures. Other threads (the control
        # socket, the one that waits for results) may use the GPU meanwhile: hence "thread_local".
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        except BaseException:
            with suppress(Exception):  # a broken capture cannot be ended either, but the stream is free again
                graph.capture_end()
            raise
        graph.capture_end()
        return graph.replay

    def named(self, name: str) -> AbstractContextManager[object]:
        return torch.cuda.nvtx.range(name)

    def memory(self) -> DeviceMemory:
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return DeviceMemory(free, total)

    def peak_during(self, work: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def check(self) -> None:
        try:
            torch.cuda.synchronize()
        except Exception as error:
            what = str(error).partition("\n")[0]
            raise DeviceError(
                f"The GPU cannot go on after an error: {what}.", "See its log lines."
            ) from error

    def release_cached(self) -> None:
        torch.cuda.empty_cache()


class _CudaArrival:
    def __init__(self, copies: list[torch.Tensor], event: torch.cuda.Event, device: torch.device) -> None:
        self._copies = copies
        self._event = event
        self._device = device

    def ready(self) -> bool:
        return self._event.query()

    def wait(self) -> None:
        # A thread that has not said which GPU is its own would make a context, and take memory, on the first one.
        torch.cuda.set_device(self._device)
        self._event.synchronize()

    def arrays(self) -> list[np.ndarray]:
        self.wait()
        return [copy.numpy() for copy in self._copies]


def open_device(name: str, index: int = 0) -> Device:
    """name: "cpu", "cuda", or "auto" for a GPU if there is one; index: which GPU, of those that are visible.

    Raises `DeviceError` if the asked for device is not there.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return CpuDevice()
    if not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: torch finds no usable GPU.", "Use --device cpu, or a CUDA build of torch."
        )
    if index >= (count := torch.cuda.device_count()):
        raise DeviceError(
            f"Rank {index} of this machine has no GPU: there are {count}.",
            f"Use --tp {count} at most a node.",
        )
    return CudaDevice(index)


@contextmanager
def computing(device: Device) -> Iterator[None]:
    """Around everything that enqueues work: no gradients, and the device's compute stream."""
    device.activate()
    with torch.inference_mode():
        yield

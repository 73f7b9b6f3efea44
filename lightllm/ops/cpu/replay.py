"""Decode rounds without Python between the kernels: the layers' calls of a batch size are noted once and replayed in one parallel region.

What a captured graph is on a GPU. A pass is replayed if it was nothing but calls of our own kernels (`recording.py`); its inputs are
copied to where they were, and what attention is told about a round is worked out anew. The kernels are the same with the same
numbers, so the results are, to the bit, which the first replay is checked for.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.cpu.calls import replay as at
from lightllm.ops.cpu.library import Kernel, barrier_address, load_kernels
from lightllm.ops.cpu.recording import Arena, Noted, OfRound, Recording

logger = logging.getLogger(__name__)

_MOST = 256
"""Passes that are kept, the last used of them."""
_LINE = 8
"""int64 numbers of a cache line."""
Tensors = Sequence[torch.Tensor]


class Replays:
    """The passes of one model, by the shapes of their inputs."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel, self._arena = kernel, Arena()
        self._passes: OrderedDict[Hashable, _Pass] = OrderedDict()
        self._checked = False
        self.refusal = ""
        """Why passes are not replayed."""

    def run(
        self,
        work: Callable[[Tensors], Tensors],
        inputs: Tensors,
        metadata: AttentionMetadata,
        key: Hashable = (),
    ) -> Tensors:
        """`work(inputs)`, which may write to the first of them; the results hold until the next run.

        work: computes the same for other inputs and another round of the same shapes and the same `key`; of the round it reads
        `metadata` alone.
        """
        if self.refusal:
            return work(inputs)
        key = (key, torch.get_num_threads(), *[(tensor.shape, tensor.dtype) for tensor in inputs])
        found = self._passes.get(key)
        if found is not None:
            self._passes.move_to_end(key)
            return found.run(inputs, metadata)
        recording = Recording(self._arena)
        own = [self._copy(tensor) for tensor in inputs]
        with recording:
            results = work(own)
        if recording.refusal:
            self.refusal = recording.refusal
            logger.debug("decode rounds are not replayed: %s", self.refusal)
            return results
        new = _Pass(self._kernel, self._arena, recording.noted, own, results)
        if not self._checked and not self._check(new, inputs, metadata, results):
            return results
        if len(self._passes) >= _MOST:
            self._passes.popitem(last=False)[1].drop()
        self._passes[key] = new
        return results

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._arena.empty(tensor.shape, tensor.dtype).copy_(tensor)

    def _check(self, new: _Pass, inputs: Tensors, metadata: AttentionMetadata, results: Tensors) -> bool:
        """Whether a replay gives what was computed."""
        computed = [_bits(tensor) for tensor in results]
        replayed = [_bits(tensor) for tensor in new.run(inputs, metadata)]
        self._checked = all(map(np.array_equal, computed, replayed))
        if not self._checked:
            self.refusal = "a replay computed something else"
            logger.error("decode rounds are not replayed, which is slower: %s", self.refusal)
        for tensor, bits in zip(results, computed, strict=True):
            tensor.view(torch.uint8).copy_(torch.from_numpy(bits))
        return self._checked


class _OfRound:
    """Calls of layers that are told the same of a round."""

    def __init__(self, noted: Sequence[Noted], calls: np.ndarray, pristine: np.ndarray) -> None:
        """calls: int64 [layers, n], what the kernels are told, beginning as `pristine`."""
        first: OfRound = noted[0].of_round  # type: ignore[assignment]
        places = first.places
        self._make, self._calls, self._places = first.make, calls, places
        self._scales = np.stack([one.scale for one in noted])  # type: ignore[misc]
        for row, one in enumerate(noted):
            pristine[row] = one.told
        numbers = np.arange(len(noted))
        pristine[:, places.scale] = self._scales.ctypes.data + numbers * self._scales.strides[0]
        own = {places.counters, places.scale, *places.of_layer}
        self._shared = np.array([place for place in range(pristine.shape[1]) if place not in own])
        self._numbers = numbers

    def tell(self, metadata: AttentionMetadata) -> object:
        """Returns what must live until the calls are done."""
        made = self._make(metadata)
        counters = np.zeros((len(self._numbers), -(-len(made.counters) // _LINE) * _LINE), np.int64)
        self._calls[:, self._shared] = made.call[self._shared]
        self._calls[:, self._places.counters] = counters.ctypes.data + self._numbers * counters.strides[0]
        return made, counters


class _Pass:
    def __init__(
        self, kernel: Kernel, arena: Arena, noted: Sequence[Noted], inputs: Tensors, results: Tensors
    ) -> None:
        self._kernel, self._arena, self._inputs, self._results = kernel, arena, inputs, results
        self._kept = list({id(tensor): tensor for tensor in (*inputs, *results)}.values())
        for tensor in self._kept:
            arena.keep(tensor)
        by_round: OrderedDict[Hashable, list[int]] = OrderedDict()
        for number, one in enumerate(noted):
            by_round.setdefault(
                (number,) if one.of_round is None else ("round", one.of_round.key), []
            ).append(number)
        entries = len(noted) * at.ENTRY_LENGTH
        self._pristine = np.zeros(entries + sum(len(one.told) for one in noted), np.int64)
        self._live = np.zeros_like(self._pristine)
        table = self._pristine[:entries].reshape(len(noted), at.ENTRY_LENGTH)
        self._of_round, begin = [], entries
        for numbers in by_round.values():
            size = len(noted[numbers[0]].told)
            end = begin + len(numbers) * size
            own = self._pristine[begin:end].reshape(len(numbers), size)
            for row, number in enumerate(numbers):
                own[row] = noted[number].told
                table[number, at.TOLD] = self._live.ctypes.data + 8 * (begin + row * size)
            if noted[numbers[0]].of_round is not None:
                live = self._live[begin:end].reshape(len(numbers), size)
                self._of_round.append(_OfRound([noted[number] for number in numbers], live, own))
            begin = end
        table[:, at.FUNCTION] = [one.function for one in noted]
        table[:, at.ALONE] = [one.alone for one in noted]
        threads = torch.get_num_threads()
        self._call = np.array(
            [self._live.ctypes.data, len(noted), barrier_address() if threads > 1 else 0], np.int64
        )
        self._run = kernel.at_once if all(one.alone for one in noted) else kernel

    def run(self, inputs: Tensors, metadata: AttentionMetadata) -> Tensors:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._live[:] = self._pristine  # counters begin at 0
        told = [of_round.tell(metadata) for of_round in self._of_round]
        self._run(self._call.ctypes.data)
        del told
        return self._results

    def drop(self) -> None:
        for tensor in self._kept:
            self._arena.keep(tensor, -1)


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy().copy()


def replays() -> Replays | None:
    """None where there is no kernel for it."""
    kernel, counts_users = load_kernels().get("replay"), hasattr(torch._C, "_storage_Use_Count")
    return Replays(kernel) if kernel is not None and counts_users and barrier_address() else None

"""Reads a Hugging Face checkpoint: safetensors (single or sharded) or torch .bin files, mapped into memory."""

from __future__ import annotations

import logging
import math
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lightllm.errors import InvalidModel
from lightllm.weights.mapped_files import MappedFiles
from lightllm.weights.source import TensorSource
from lightllm.weights.split import Part
from lightllm.weights.weight_files import REMEDY, WeightFiles, choose_files, find_weight_files

_DENSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


def open_checkpoint(model_dir: str) -> TensorSource:
    """The weights of a model folder, safetensors preferred. Raises `InvalidModel` that names the file."""
    files = find_weight_files(model_dir)
    if files.unread:
        more = f" and {len(files.unread) - 3} more" if len(files.unread) > 3 else ""
        logger.info("weights: %s%s not read", ", ".join(files.unread[:3]), more)
    return SafetensorsCheckpoint(files) if files.paths[0].suffix == ".safetensors" else BinCheckpoint(files)


class SafetensorsCheckpoint:
    """Opens every file at once, which reads headers only."""

    def __init__(self, files: WeightFiles) -> None:
        opened: dict[Path, Any] = {}
        for path in files.paths:
            try:
                opened[path] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InvalidModel(f"{path} cannot be read: {error}.", REMEDY) from error

        def same(name: str, first: Path, second: Path) -> bool:
            return torch.equal(opened[first].get_tensor(name), opened[second].get_tensor(name))

        tensors = {path: list(file.keys()) for path, file in opened.items()}
        self._paths, self.overruled = choose_files(files, tensors, same)
        self._files = {name: opened[path] for name, path in self._paths.items()}
        self._lock = threading.Lock()
        self.release_pages = MappedFiles(files.paths).release_pages

    def names(self) -> set[str]:
        return set(self._files)

    def dtype(self) -> torch.dtype:
        dtypes = (file.get_slice(name)[:0].dtype for name, file in self._files.items())
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.bfloat16)

    def largest(self) -> int:
        views = (file.get_slice(name) for name, file in self._files.items())
        return max(math.prod(view.get_shape()) * view[:0].element_size() for view in views)

    def nbytes(self, dtype: torch.dtype) -> int:
        views = [file.get_slice(name) for name, file in self._files.items()]
        return sum(math.prod(view.get_shape()) * _kept_in(view[:0].dtype, dtype).itemsize for view in views)

    def read(
        self, name: str, shape: Sequence[int], parts: Sequence[Part] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if name not in self._files:
            raise _missing(name, self._files)
        with self._lock:
            file = self._files[name]
            view = file.get_slice(name)
            _check(name, view.get_shape(), view[:0].dtype, shape, dtype, self._paths[name])
            if not parts:
                return file.get_tensor(name)
            ranges = {part.dim: slice(part.start, part.stop) for part in parts}
            return view[tuple(ranges.get(dim, slice(None)) for dim in range(max(ranges) + 1))]


class BinCheckpoint:
    """torch.save files, read with `weights_only`: code in them is refused, not run."""

    def __init__(self, files: WeightFiles) -> None:
        states: dict[Path, dict[str, torch.Tensor]] = {}
        for path in files.paths:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except Exception as error:  # a broken file makes torch raise nearly anything
                first_line = str(error).partition("\n")[0]
                raise InvalidModel(f"{path} cannot be read: {first_line}", REMEDY) from error
            if not isinstance(state, dict):
                raise InvalidModel(f"{path} holds no tensors by name.")
            states[path] = {name: item for name, item in state.items() if isinstance(item, torch.Tensor)}

        def same(name: str, first: Path, second: Path) -> bool:
            return torch.equal(states[first][name], states[second][name])

        self._paths, self.overruled = choose_files(files, states, same)
        self._tensors = {name: states[path][name] for name, path in self._paths.items()}
        self.release_pages = MappedFiles(files.paths).release_pages

    def names(self) -> set[str]:
        return set(self._tensors)

    def dtype(self) -> torch.dtype:
        dtypes = (tensor.dtype for tensor in self._tensors.values())
        return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.bfloat16)

    def largest(self) -> int:
        return max(tensor.nbytes for tensor in self._tensors.values())

    def nbytes(self, dtype: torch.dtype) -> int:
        # Tied tensors are one storage under several names.
        tensors = {tensor.data_ptr(): tensor for tensor in self._tensors.values()}.values()
        return sum(tensor.numel() * _kept_in(tensor.dtype, dtype).itemsize for tensor in tensors)

    def read(
        self, name: str, shape: Sequence[int], parts: Sequence[Part] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if name not in self._tensors:
            raise _missing(name, self._tensors)
        tensor = self._tensors[name]
        _check(name, tensor.shape, tensor.dtype, shape, dtype, self._paths[name])
        for part in parts:
            tensor = part.of(tensor)
        return tensor


def _kept_in(found: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    return dtype if found in _DENSE else found


def _missing(name: str, present: dict[str, Any]) -> InvalidModel:
    return InvalidModel(f"The checkpoint lacks tensor {name!r} ({len(present)} others are there).", REMEDY)


def _check(
    name: str,
    found: Sequence[int],
    dtype: torch.dtype,
    expected: Sequence[int],
    expected_dtype: torch.dtype | None,
    path: Path,
) -> None:
    if expected_dtype is not None and dtype != expected_dtype:
        raise InvalidModel(
            f"Tensor {name!r} in {path} holds {str(dtype).removeprefix('torch.')}, its format "
            f"{str(expected_dtype).removeprefix('torch.')}.",
            "Weights and config.json do not belong together.",
        )
    if expected_dtype is None and dtype not in _DENSE:
        raise InvalidModel(
            f"Tensor {name!r} in {path} holds {str(dtype).removeprefix('torch.')}: the weights are quantized, "
            "config.json says nothing of it.",
            "Use a bfloat16 copy of it.",
        )
    if list(found) != list(expected):
        raise InvalidModel(
            f"Tensor {name!r} in {path} has shape {list(found)}, config.json implies {list(expected)}.",
            "Weights and config.json do not belong together.",
        )

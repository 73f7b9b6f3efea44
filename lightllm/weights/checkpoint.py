"""Reads a Hugging Face checkpoint: safetensors (single or sharded) or torch .bin files, mapped into memory."""

from __future__ import annotations

import json
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

_REMEDY = "Is the download complete?"


def open_checkpoint(model_dir: str) -> TensorSource:
    """The weights of a model folder, safetensors preferred. Raises `InvalidModel` that names the file."""
    folder = Path(model_dir)
    if paths := _files(folder, "model.safetensors", "*.safetensors"):
        return SafetensorsCheckpoint(paths)
    if paths := _files(folder, "pytorch_model.bin", "pytorch_model*.bin"):
        return BinCheckpoint(paths)
    raise InvalidModel(f"{model_dir} has no weights (*.safetensors or pytorch_model*.bin).", _REMEDY)


def _files(folder: Path, single: str, pattern: str) -> list[Path]:
    """The weight files of one format: those that the index names, else the single file, else all that match."""
    index = folder / f"{single}.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InvalidModel(f"{index} is not a valid index: {error!r}.", _REMEDY) from error
        if missing := [name for name in names if not (folder / name).exists()]:
            raise InvalidModel(f"{folder} lacks {', '.join(missing)}, which {index.name} names.", _REMEDY)
        return [folder / name for name in names]
    if (folder / single).exists():
        return [folder / single]
    return sorted(folder.glob(pattern))


class SafetensorsCheckpoint:
    """Opens every file at once, which reads headers only."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Any] = {}
        self._paths: dict[str, Path] = {}
        self._lock = threading.Lock()
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise InvalidModel(f"{path} cannot be read: {error}.", _REMEDY) from error
            for name in file.keys():  # noqa: SIM118  (no mapping)
                self._files[name], self._paths[name] = file, path
        self.forget = MappedFiles(paths).forget

    def names(self) -> set[str]:
        return set(self._files)

    def dtype(self) -> torch.dtype:
        name = next(iter(self._files))
        return self._files[name].get_slice(name)[:0].dtype

    def largest(self) -> int:
        views = (file.get_slice(name) for name, file in self._files.items())
        return max(math.prod(view.get_shape()) * view[:0].element_size() for view in views)

    def read(self, name: str, shape: Sequence[int], part: Part | None) -> torch.Tensor:
        if name not in self._files:
            raise _missing(name, self._files)
        with self._lock:
            file = self._files[name]
            view = file.get_slice(name)
            _check_shape(name, view.get_shape(), shape, self._paths[name])
            if part is None:
                return file.get_tensor(name)
            return view[(slice(None),) * part.dim + (slice(part.start, part.stop),)]


class BinCheckpoint:
    """torch.save files, read with `weights_only`: code in them is refused, not run."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._paths: dict[str, Path] = {}
        for path in paths:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except Exception as error:  # a broken file makes torch raise nearly anything
                first_line = str(error).partition("\n")[0]
                raise InvalidModel(f"{path} cannot be read: {first_line}", _REMEDY) from error
            if not isinstance(state, dict):
                raise InvalidModel(f"{path} holds no tensors by name.")
            for name, tensor in state.items():
                if isinstance(tensor, torch.Tensor):
                    self._tensors[name], self._paths[name] = tensor, path
        self.forget = MappedFiles(paths).forget

    def names(self) -> set[str]:
        return set(self._tensors)

    def dtype(self) -> torch.dtype:
        return next(iter(self._tensors.values())).dtype

    def largest(self) -> int:
        return max(tensor.nbytes for tensor in self._tensors.values())

    def read(self, name: str, shape: Sequence[int], part: Part | None) -> torch.Tensor:
        if name not in self._tensors:
            raise _missing(name, self._tensors)
        tensor = self._tensors[name]
        _check_shape(name, tensor.shape, shape, self._paths[name])
        return tensor if part is None else tensor.narrow(part.dim, part.start, part.stop - part.start)


def _missing(name: str, present: dict[str, Any]) -> InvalidModel:
    return InvalidModel(f"The checkpoint lacks tensor {name!r} ({len(present)} others are there).", _REMEDY)


def _check_shape(name: str, found: Sequence[int], expected: Sequence[int], path: Path) -> None:
    if list(found) != list(expected):
        raise InvalidModel(
            f"Tensor {name!r} in {path} has shape {list(found)}, config.json implies {list(expected)}.",
            "Weights and config.json do not belong together.",
        )

"""Reads a Hugging Face checkpoint: safetensors (single or sharded) or torch .bin files, mapped into memory."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lightllm.errors import InvalidModel
from lightllm.weights.mapped_files import MappedFiles
from lightllm.weights.source import StoredTensor
from lightllm.weights.split import Part
from lightllm.weights.weight_files import REMEDY, WeightFiles, choose_files, find_weight_files

_DENSE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

logger = logging.getLogger(__name__)


def open_checkpoint(model_dir: str) -> Checkpoint:
    """The weights of a model folder, safetensors preferred. Raises `InvalidModel` that names the file."""
    files = find_weight_files(model_dir)
    if files.unread:
        more = f" and {len(files.unread) - 3} more" if len(files.unread) > 3 else ""
        logger.info("weights: %s%s not read", ", ".join(files.unread[:3]), more)
    load = _open_safetensors if files.paths[0].suffix == ".safetensors" else _open_bin
    return Checkpoint(files, {path: load(path) for path in files.paths})


def _open_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        file = safe_open(path, framework="pt")
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise InvalidModel(f"{path} cannot be read: {error}.", REMEDY) from error


def _open_bin(path: Path) -> dict[str, torch.Tensor]:
    """A file of torch.save, read with `weights_only`: code in it is refused, not run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file makes torch raise nearly anything
        first_line = str(error).partition("\n")[0]
        raise InvalidModel(f"{path} cannot be read: {first_line}", REMEDY) from error
    if not isinstance(state, dict):
        raise InvalidModel(f"{path} holds no tensors by name.")
    return {name: item for name, item in state.items() if isinstance(item, torch.Tensor)}


class Checkpoint:
    """Tensors of some files, views of their mappings: what is not read takes no memory."""

    def __init__(self, files: WeightFiles, tensors: Mapping[Path, Mapping[str, torch.Tensor]]) -> None:
        def same(name: str, first: Path, second: Path) -> bool:
            return torch.equal(tensors[first][name], tensors[second][name])

        self._paths, self.overruled = choose_files(files, tensors, same)
        self._tensors = {name: tensors[path][name] for name, path in self._paths.items()}
        self.release_pages = MappedFiles(files.paths).release_pages

    def names(self) -> set[str]:
        return set(self._tensors)

    def dtype(self) -> torch.dtype:
        dtypes = (tensor.dtype for tensor in self._tensors.values())
        return next((dtype for dtype in dtypes if dtype in _DENSE), torch.bfloat16)

    def stored(self, name: str) -> StoredTensor | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else StoredTensor(tuple(tensor.shape), tensor.dtype)

    def largest(self) -> int:
        return max(tensor.nbytes for tensor in self._tensors.values())

    def nbytes(self, dtype: torch.dtype, names: Iterable[str]) -> int:
        # Tied tensors of torch.save are one storage under several names.
        named = (self._tensors[name] for name in names)
        tensors = {tensor.data_ptr(): tensor for tensor in named}.values()
        return sum(
            tensor.numel() * (dtype if tensor.dtype in _DENSE else tensor.dtype).itemsize
            for tensor in tensors
        )

    def read(
        self, name: str, shape: Sequence[int], parts: Sequence[Part] = (), dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        if name not in self._tensors:
            raise InvalidModel(
                f"The checkpoint lacks tensor {name!r} ({len(self._tensors)} others are there).", REMEDY
            )
        tensor = self._tensors[name]
        _check(name, self._paths[name], tensor, shape, dtype)
        for part in parts:
            tensor = part.of(tensor)
        return tensor


def _check(
    name: str, path: Path, tensor: torch.Tensor, shape: Sequence[int], expected_dtype: torch.dtype | None
) -> None:
    dtype = tensor.dtype
    if expected_dtype is not None and dtype != expected_dtype:
        raise InvalidModel(
            f"Tensor {name!r} in {path} holds {str(dtype).removeprefix('torch.')}, its format "
            f"{str(expected_dtype).removeprefix('torch.')}.",
            "Weights and config.json do not belong together.",
        )
    if expected_dtype is None and dtype not in _DENSE:
        raise InvalidModel(
            f"Tensor {name!r} in {path} holds {str(dtype).removeprefix('torch.')}: it is quantized, and neither config.json "
            "nor a scale beside it says how.",
            "Use a bfloat16 copy of it.",
        )
    if list(tensor.shape) != list(shape):
        raise InvalidModel(
            f"Tensor {name!r} in {path} has shape {list(tensor.shape)}, config.json implies {list(shape)}.",
            "Weights and config.json do not belong together.",
        )

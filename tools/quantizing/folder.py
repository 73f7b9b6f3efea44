"""Reads a model folder's tensors one by one, and writes another folder, a file a layer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

_WEIGHTS = re.compile(r"\.(safetensors|bin|pt|pth|gguf|onnx|h5|msgpack)(\.index\.json)?$")


class WrittenFolder:
    """Files are there when `finish` has been called; until then the folder has no config.json, and nobody takes it for a model."""

    def __init__(self, folder: Path, files: int) -> None:
        """files: how many there will be. Raises `FileExistsError` where the folder holds anything."""
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError(f"{folder} is not empty")
        self._folder, self._files, self._written = folder, files, 0
        self._map: dict[str, str] = {}
        self._nbytes = 0

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The next file."""
        self._written += 1
        name = f"model-{self._written:05}-of-{self._files:05}.safetensors"
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            self._folder / name,
            {"format": "pt"},
        )
        self._map |= dict.fromkeys(tensors, name)
        self._nbytes += sum(tensor.nbytes for tensor in tensors.values())

    def finish(self, source: Path, config: Mapping[str, Any]) -> None:
        """config: the content of config.json; what else the source has beside its weights is copied."""
        assert self._written == self._files
        index = {"metadata": {"total_size": self._nbytes}, "weight_map": dict(sorted(self._map.items()))}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name != "config.json" and not _WEIGHTS.search(path.name):
                shutil.copyfile(path, self._folder / path.name)
        written = self._folder / "model.safetensors.index.json"
        for name in set(self._map.values()):
            shutil.copymode(written, self._folder / name)  # safetensors lets nobody else read them
        (self._folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

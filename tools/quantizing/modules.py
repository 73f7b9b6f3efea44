"""Which tensors of a checkpoint are quantised, layer by layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from lightllm.errors import InvalidModel
from lightllm.models.base import TpPartBaseModel
from lightllm.models.config import ModelConfig
from lightllm.models.hf_configs import load_config
from lightllm.models.registry import find_class, names_of
from lightllm.quantization.layout import WHOLE
from lightllm.quantization.quant_plan import QuantPlan
from lightllm.quantization.quant_types import QuantType
from lightllm.weights.checkpoint import Checkpoint, open_checkpoint
from lightllm.weights.reader import WeightReader


class Module(NamedTuple):
    """A linear layer that is quantised."""

    spelling: str
    """Its name in the checkpoint."""
    shape: tuple[int, ...]
    """[out, in]"""
    group: int
    """Inputs that share a scale."""


class Source:
    """A dense model folder, opened."""

    def __init__(self, folder: Path, kind: QuantType) -> None:
        """Raises `InvalidModel` for one that is not dense."""
        self.config: ModelConfig = load_config(str(folder))
        if self.config.quantization is not None:
            raise InvalidModel(f"{folder} is quantised already ({self.config.quantization['quant_method']}).")
        self.checkpoint: Checkpoint = open_checkpoint(str(folder))
        self.model_class: type[TpPartBaseModel] = find_class(self.config.architecture)
        self._name_of = names_of(self.config, self.model_class, self.checkpoint.names())
        self._layer = re.compile(rf"{re.escape(self.model_class.names.layers)}\.(\d+)\.")
        plan = QuantPlan(kind)
        self.modules: dict[str, Module] = {}
        """By the model's own names."""
        self.uneven: list[str] = []
        """Linear layers that stay dense because no group divides their inputs, by their names in the checkpoint."""
        self._of_layer: dict[int | None, list[str]] = {}
        for spelling in sorted(self.checkpoint.names()):
            self._of_layer.setdefault(self._layer_of(spelling), []).append(spelling)
            self._sort(spelling, kind, plan)

    def _layer_of(self, spelling: str) -> int | None:
        found = self._layer.match(self._name_of(spelling) or "")
        number = int(found[1]) if found else -1
        return number if 0 <= number < self.config.num_layers else None

    def _sort(self, spelling: str, kind: QuantType, plan: QuantPlan) -> None:
        name, stored = self._name_of(spelling), self.checkpoint.stored(spelling)
        if name is None or stored is None or not name.endswith(".weight") or len(stored.shape) != 2:
            return
        module = name.removesuffix(".weight")
        if self._layer_of(spelling) is None or plan.type_of([module]) is None:
            return
        group = kind.group_of(stored.shape[1])
        if group != WHOLE and stored.shape[1] % group:
            self.uneven.append(spelling.removesuffix(".weight"))
        else:
            self.modules[module] = Module(spelling.removesuffix(".weight"), stored.shape, group)

    def tensors(self, layer: int | None) -> list[str]:
        """Of a layer, None: of what is in none, by their names in the checkpoint."""
        return self._of_layer.get(layer, [])

    def modules_of(self, layer: int) -> list[str]:
        return [
            name for name, one in self.modules.items() if self._layer_of(f"{one.spelling}.weight") == layer
        ]

    def left_dense(self) -> list[str]:
        """Modules with a matrix of their own that is not quantised, for the list `ignore`."""
        quantised = {one.spelling for one in self.modules.values()}
        found = {"lm_head"}
        for spelling in self.checkpoint.names():
            stored, module = self.checkpoint.stored(spelling), spelling.removesuffix(".weight")
            if (
                module != spelling
                and stored is not None
                and len(stored.shape) == 2
                and module not in quantised
            ):
                found.add(module)
        return sorted(found)

    def reader(self) -> WeightReader:
        return WeightReader(self.checkpoint, name_of=self._name_of)

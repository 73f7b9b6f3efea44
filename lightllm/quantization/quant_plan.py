"""Which modules of a dense checkpoint are quantised while they are loaded, and how: `--quant_type` and `--quant_cfg`. Loads no torch.

A file for `--quant_cfg` is LightLLM's:

    quant_type: w4a16              # of what nothing below names
    mix_bits:
      - name: down_proj            # or kv_proj, gate_up_proj, qkv_proj, fused_moe; lm_head
        quant_type: w8a16          # none: as in the checkpoint
        layer_nums: [0, 1]         # all layers, where it is left out
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lightllm.errors import InvalidOption
from lightllm.quantization.quant_types import PUBLISHED, QuantType, quant_type

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.(.+)")
"""Name of a module in a decoder layer: the layer's number, and what it is called there."""
_LEFT_DENSE = ("gate", "router", "shared_expert_gate", "kv_b_proj")
"""Modules of a layer: routers, whose small differences choose another expert, and what is more than a linear layer."""
_TOGETHER = {
    "kv_proj": ("k_proj", "v_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
"""What LightLLM fuses, and calls so, besides modules that are called so."""
_EXPERTS = "fused_moe"


def is_in_layer(module: str) -> bool:
    return _LAYER.search(module) is not None


@dataclasses.dataclass(frozen=True)
class Override:
    name: str
    type: QuantType | None
    layers: frozenset[int] | None
    """None: all, and what is in no layer."""

    def names(self, module: str) -> bool:
        found = _LAYER.search(module)
        if found is None:
            return self.layers is None and module.rpartition(".")[2] == self.name
        if self.layers is not None and int(found[1]) not in self.layers:
            return False
        inside = f".{found[2]}"
        if self.name == _EXPERTS:
            return ".experts." in inside
        return any(inside.endswith(f".{name}") for name in (self.name, *_TOGETHER.get(self.name, ())))


@dataclasses.dataclass(frozen=True)
class QuantPlan:
    default: QuantType | None
    overrides: tuple[Override, ...] = ()

    @property
    def described(self) -> str:
        """For people: such as "w4a16, others none w8a16"."""
        others = sorted({one.type.name if one.type else "none" for one in self.overrides})
        name = self.default.name if self.default else "none"
        return f"{name}, others {' '.join(others)}" if others else name

    def type_of(self, names: Sequence[str]) -> QuantType | None:
        """names: of one module, whatever it is called; None: it stays dense. The last override that names it counts."""
        for override in reversed(self.overrides):
            if any(map(override.names, names)):
                return override.type
        in_layer = [found for found in map(_LAYER.search, names) if found]
        left = any(found[2].rpartition(".")[2] in _LEFT_DENSE for found in in_layer)
        return self.default if in_layer and not left else None

    def check_modules(self, modules: Collection[str]) -> None:
        """modules: all that can be quantised. Raises `InvalidOption` for an override that names none of them, or other layers."""
        found = [layer for layer in map(_LAYER.search, modules) if layer]
        layers = {int(layer[1]) for layer in found}
        for override in self.overrides:
            if missing := sorted((override.layers or layers) - layers):
                raise InvalidOption(
                    f"--quant_cfg: layer_nums {missing} of {override.name}: the model has layers 0 to {max(layers)}."
                )
            if not any(map(override.names, modules)):
                known = sorted({layer[2].rpartition(".")[2] for layer in found})
                raise InvalidOption(
                    f"--quant_cfg: the model has no module {override.name!r} to quantise.",
                    f"Its layers have {', '.join(known)}.",
                )


def read_plan(name: str, file: str | None) -> QuantPlan | None:
    """name: of `--quant_type`; file: of `--quant_cfg`. None: weights stay as they are. Raises `InvalidOption`."""
    if file is None:
        default = None if name in PUBLISHED else quant_type(name)
        return None if default is None else QuantPlan(default)
    raw = _read_yaml(file)
    own = raw.pop("quant_type", name)
    kind = quant_type(str(own), f"--quant_cfg {file}: quant_type")
    if name != "none" and quant_type(name) != kind:
        raise InvalidOption(
            f"--quant_type {name} contradicts quant_type {own} in --quant_cfg {file}.", "Leave one out."
        )
    mixed = raw.pop("mix_bits", None) or []
    if raw or not isinstance(mixed, list):
        raise InvalidOption(
            f"--quant_cfg {file}: {', '.join(map(str, raw)) or 'mix_bits'} is not understood.",
            "It has quant_type and a list mix_bits of name, quant_type and layer_nums.",
        )
    return QuantPlan(kind, tuple(_override(one, file) for one in mixed))


def _read_yaml(file: str) -> dict[str, Any]:
    import yaml

    try:
        with open(file, encoding="utf-8") as opened:
            raw = yaml.safe_load(opened)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidOption(f"--quant_cfg {file} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(raw, dict):
        raise InvalidOption(f"--quant_cfg {file} holds no options.", "It begins with quant_type.")
    return raw


def _override(one: Any, file: str) -> Override:
    given = dict(one) if isinstance(one, dict) else {}
    name = given.pop("name", given.pop("layer_name", None))
    type_name, layers = given.pop("quant_type", None), given.pop("layer_nums", None)
    numbers = layers is None or (isinstance(layers, list) and all(type(n) is int for n in layers))
    if given or not isinstance(name, str) or not isinstance(type_name, str) or not numbers:
        raise InvalidOption(
            f"--quant_cfg {file}: {one!r} in mix_bits is not understood.",
            "It has a name, a quant_type, and perhaps a list layer_nums.",
        )
    kind = quant_type(type_name, f"--quant_cfg {file}: quant_type of {name}")
    return Override(name, kind, None if layers is None else frozenset(layers))


def check_dense(name: str, plan: QuantPlan | None, quantization: Mapping[str, Any] | None) -> None:
    """name: of `--quant_type`; quantization: the checkpoint's own format, None: dense. Raises `InvalidOption`."""
    method = None if quantization is None else quantization["quant_method"]
    if plan is not None and method is not None:
        raise InvalidOption(
            f"--quant_type {plan.described}: the checkpoint is quantised already ({method}), and is read as it is.",
            "Leave it out, or take the dense checkpoint.",
        )
    if plan is None and name in PUBLISHED and method != "awq":
        raise InvalidOption(
            f"--quant_type {name} is for checkpoints that are quantised so; this one is {method or 'dense'}.",
            "Leave it out, or take w4a16.",
        )

"""Which rotary embedding a config.json asks for, checked. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.model_folder.config import rope_parameters
from lightllm.models.config_fields import Fields

REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "qwen_dynamic": ("original_max_position_embeddings",),
}
"""Supported types of rotary embedding and the fields that each needs; `ops/rotary.py` has their formulas."""

_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": ("attention_factor", "factor", "short_mscale", "long_mscale"),
}
_OTHER_COMPUTATION = {"llama_4_scaling_beta": "it scales queries by their position (Ministral 3, Llama 4)"}
"""Fields that no supported architecture computes; without them the output would be another."""

_KNOWN = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned",
    "mrope_section", "mrope_interleaved", *(name for names in (*REQUIRED.values(), *_OPTIONAL.values()) for name in names),
}  # fmt: skip
"""Fields that have an effect, or are known to need none."""

_TAKING_TURNS = frozenset({"qwen3_vl", "qwen3_vl_text"})
"""`model_type` of models whose M-RoPE is interleaved whether or not `mrope_interleaved` says so."""

_OLD_NAMES = {"su": "longrope", "deepseek_yarn": "yarn", "mrope": "default"}


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """One kind of rotary embedding that some or all layers use."""

    dim: int
    """How many elements of each head are rotated, from the first on."""
    theta: float
    scaling: Mapping[str, Any]
    """`rope_type` and its fields: numbers, or a list of dim / 2 numbers."""
    interleaved: bool = False
    """In the checkpoint element 2i is paired with 2i + 1; else i with i + dim / 2."""
    axes: tuple[int, ...] = ()
    """M-RoPE: which of a token's three positions (0 time, 1 row, 2 column) turns each of the dim / 2 pairs; empty: tokens have
    one position."""


def read_rope(fields: Fields, head_dim: int, interleaved: bool = False) -> RopeConfig:
    """The one rotary embedding of a model."""
    return make_rope(fields, stated_rope(fields), head_dim, interleaved)


def stated_rope(fields: Fields) -> dict[str, Any]:
    """The description of a rotary embedding (`rope_parameters`); what stands inside goes before what stands beside it, but for the
    original length."""
    given = rope_parameters(fields.get)
    old, new = fields.get("rope_scaling"), fields.get("rope_parameters")
    where = "rope_scaling" if old else "rope_parameters"
    if old and new and old != new:
        fields.overrule(f"rope_scaling {old!r} is taken, rope_parameters {new!r} is not")
    for name in ("rope_theta", "partial_rotary_factor"):
        outside = fields.stated(name)
        if name in given and outside is not None and outside != given[name]:
            fields.overrule(f"{name} {given[name]!r} of {where} is taken, {outside!r} beside it is not")
    original = "original_max_position_embeddings"
    if original in given and (inside := (old or new)[original]) != given[original]:
        fields.overrule(f"{original} {given[original]!r} is taken, {inside!r} of {where} is not")
    if "rope_type" in given and given.get("type", given["rope_type"]) != given["rope_type"]:
        fields.overrule(f"rope_type {given['rope_type']!r} is taken, type {given['type']!r} is not")
    for name in sorted(given.keys() & _OTHER_COMPUTATION.keys()):
        raise InvalidModel(f"config.json: {name} in {where} is not supported: {_OTHER_COMPUTATION[name]}.")
    if unknown := sorted(given.keys() - _KNOWN):
        fields.overrule(f"{', '.join(unknown)} in {where} has no effect")
    return given


def make_rope(
    fields: Fields, given: Mapping[str, Any], head_dim: int, interleaved: bool = False
) -> RopeConfig:
    """`given`: the file's description of this rotary embedding; what it leaves out stands outside of it."""
    given = {name: value for name, value in given.items() if value is not None}
    theta = given.get("rope_theta", fields.number("rope_theta", 10000.0))
    share = given.get("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    kind = given.get("rope_type", given.get("type", "default"))
    kind = _OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in REQUIRED:
        raise InvalidModel(f"rope type {kind!r} is not supported; supported are {', '.join(REQUIRED)}.")
    stated = fields.positive("max_position_embeddings", 2048)
    original = given.get("original_max_position_embeddings", fields.get("original_max_position_embeddings"))
    scaling: dict[str, Any] = {"rope_type": kind}
    known = {**given, "original_max_position_embeddings": original or stated}
    if kind in ("yarn", "longrope"):
        known.setdefault("factor", stated / _positive("original_max_position_embeddings", original or stated))
    if kind == "dynamic":
        scaling["original_max_position_embeddings"] = stated
    missing = [name for name in REQUIRED[kind] if name not in known]
    if missing:
        raise InvalidModel(f"config.json: rope type {kind!r} needs {', '.join(missing)}.")
    for name in (*REQUIRED[kind], *_OPTIONAL.get(kind, ())):
        if name in known:
            scaling[name] = _checked(name, known[name])
    dim = int(head_dim * float(_checked("partial_rotary_factor", share)))
    if dim % 2 or not 0 < dim <= head_dim:
        raise InvalidModel(f"config.json: {dim} of head_dim {head_dim} elements would be rotated, in pairs.")
    for name in ("short_factor", "long_factor"):
        if name in scaling and len(scaling[name]) != dim // 2:
            raise InvalidModel(f"config.json: rope's {name} must hold {dim // 2} numbers.")
    turns = bool(given.get("mrope_interleaved")) or fields.get("model_type") in _TAKING_TURNS
    return RopeConfig(
        dim, float(_checked("rope_theta", theta)), scaling, interleaved, _axes(given, dim // 2, turns)
    )


def _axes(given: Mapping[str, Any], pairs: int, turns: bool) -> tuple[int, ...]:
    """Of `mrope_section`: how many pairs each axis turns. Qwen2-VL (arXiv 2409.12191) has them one after the other; in Qwen3-VL
    (arXiv 2511.21631) they take turns from the first pair on, and time has what is left."""
    sections = given.get("mrope_section")
    if sections is None:
        return ()
    whole = isinstance(sections, list) and all(type(size) is int and size >= 0 for size in sections)
    if not whole or len(sections) != 3 or sum(sections) != pairs:
        raise InvalidModel(
            f"config.json: rope's mrope_section must hold three numbers of {pairs} pairs, got {sections!r}."
        )
    if not turns:
        return tuple(axis for axis, size in enumerate(sections) for _ in range(size))
    return tuple(pair % 3 if pair < 3 * sections[pair % 3] else 0 for pair in range(pairs))


def _positive(name: str, value: Any) -> float:
    number = _checked(name, value)
    if isinstance(number, tuple) or number <= 0:
        raise InvalidModel(f"config.json: rope's {name} must be positive, got {value!r}.")
    return number


def _checked(name: str, value: Any) -> Any:
    if name in ("short_factor", "long_factor"):
        if isinstance(value, list) and all(isinstance(number, (int, float)) for number in value):
            return tuple(float(number) for number in value)
    elif isinstance(value, (int, float)):
        return value if isinstance(value, bool) else float(value)
    raise InvalidModel(f"config.json: rope's {name} is not a number: {value!r}.")

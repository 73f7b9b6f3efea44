"""Tool calls as a family's models write them, for examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightllm.parsers.table import Family, Written


class WrittenCall(NamedTuple):
    name: str
    arguments: Mapping[str, Any]


def write_calls(family: Family, calls: Sequence[WrittenCall], number: int = 0) -> str:
    """number: of calls that came before in the conversation."""
    written = family.written
    assert written is not None
    texts = [
        head_of(written, number + place) + call.name + middle_of(written, number + place) + _arguments(written, call.arguments)
        + written.tail
        for place, call in enumerate(calls)
    ]  # fmt: skip
    return written.before + written.between.join(texts) + written.after


def head_of(written: Written, number: int) -> str:
    return written.head.replace("{number}", str(number)) if written.numbered else written.head


def middle_of(written: Written, number: int) -> str:
    return written.middle.replace("{number}", str(number)) if written.numbered else written.middle


def _arguments(written: Written, arguments: Mapping[str, Any]) -> str:
    if written.arguments == "json":
        return json.dumps(arguments, ensure_ascii=False)
    if written.arguments == "python":
        return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    between = "," if written.arguments == "bare" else ""
    return between.join(_parameter(written, key, value) for key, value in arguments.items())


def _parameter(written: Written, key: str, value: Any) -> str:
    if isinstance(value, str):
        before, between, behind = written.parameter
        return before + key + between + value + behind
    before, between, behind = written.parameter_json or written.parameter
    return before + key + between + json.dumps(value, ensure_ascii=False) + behind

r"""Keywords about single values that llguidance takes more widely than those who read its outputs, made narrow enough.

format             date and date-time: 29 February comes in leap years alone; time: there is no 60th second; email and
                   hostname: no more characters than a name and its parts may have
pattern            \s and \S: what Rust, ECMA 262 and Python have in common
exclusiveMinimum,  of a range that lies between two neighbouring integers: the library allows the bound itself where
exclusiveMaximum   that is one of them
"""

from __future__ import annotations

import math
import re
from typing import Any, TypeGuard

KEYWORDS = ('"format"', '"pattern"', '"exclusiveM')
"""A schema without any of these stays as it is."""

_DATE = (
    r"(?:(?:[1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
    r"|(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
)
"""Of the years 1 to 9999, as Python has them."""
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_LABEL = r"(?:[^.@]{1,3}|[^.@]{2}(?:[^.@-][^.@]|-[^.@-])[^.@]{0,45})"
"""Of a name in the DNS (RFC 1123), shorter than it may be; hyphens at the third and fourth place mean something else (RFC 5891)."""
_NAME = rf"{_LABEL}(?:\.{_LABEL}){{0,4}}"
_INSTEAD = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}"}
"""Format -> the pattern that takes its place. RFC 3339."""
_BESIDE = {"email": rf"[^@]{{1,64}}@{_NAME}", "hostname": _NAME}
"""Format -> the pattern that has to match too. RFC 5321, 4.5.3.1."""
_SPACE = r"\t\n\x0b\x0c\r "
_NO_SPACE = r"[^\s\x1c-\x1f\ufeff]"
_ESCAPE = re.compile(r"\\.|\[\^?|\]", re.DOTALL)
_LEAST = 1e-12
"""Takes the place of 0 where that is excluded."""


def narrow(node: dict[str, Any]) -> None:
    """Changes the keywords of one schema; those of schemas within it stay."""
    if isinstance(pattern := node.get("pattern"), str):
        node["pattern"] = _with_common_spaces(pattern)
    name = node.get("format")
    if isinstance(name, str) and _may_be_string(node):
        if name in _INSTEAD:
            del node["format"]
            _add_pattern(node, _INSTEAD[name])
        elif name in _BESIDE:
            _add_pattern(node, _BESIDE[name])
    _narrow_range(node)


def _may_be_string(node: dict[str, Any]) -> bool:
    return "string" in (kinds if isinstance(kinds := node.get("type", "string"), list) else [kinds])


def _add_pattern(node: dict[str, Any], pattern: str) -> None:
    pattern = f"^(?:{pattern})$"
    if "pattern" not in node:
        node["pattern"] = pattern
    elif isinstance(node.setdefault("allOf", []), list):
        node["allOf"].append({"pattern": pattern})


def _with_common_spaces(pattern: str) -> str:
    if "\\s" not in pattern and "\\S" not in pattern:
        return pattern
    within = False

    def replaced(match: re.Match[str]) -> str:
        nonlocal within
        part = match[0]
        if part[0] == "[":
            within, part = True, part
        elif part == "]":
            within = False
        elif part == "\\s":
            return _SPACE if within else f"[{_SPACE}]"
        elif part == "\\S" and not within:
            return _NO_SPACE
        return part

    return _ESCAPE.sub(replaced, pattern)


def _narrow_range(node: dict[str, Any]) -> None:
    kinds = node.get("type", "number")
    if "number" not in (kinds if isinstance(kinds, list) else [kinds]):
        return
    low, high = node.get("exclusiveMinimum"), _upper(node)
    if _is_number(low) and high is not None and low == math.floor(low) and 0 <= low < high < low + 1:
        del node["exclusiveMinimum"]
        node["minimum"] = _between(float(low), high)
    low, high = _lower(node), node.get("exclusiveMaximum")
    if _is_number(high) and low is not None and high == math.floor(high) and high - 1 < low < high <= 0:
        del node["exclusiveMaximum"]
        node["maximum"] = -_between(-float(high), -low)


def _between(low: float, high: float) -> float:
    """The least number above `low`, or nearly, and below `high`."""
    return math.nextafter(low, high) if low else min(_LEAST, high / 2)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _upper(node: dict[str, Any]) -> float | None:
    bounds = [node[name] for name in ("maximum", "exclusiveMaximum") if _is_number(node.get(name))]
    return min(bounds) if bounds else None


def _lower(node: dict[str, Any]) -> float | None:
    bounds = [node[name] for name in ("minimum", "exclusiveMinimum") if _is_number(node.get(name))]
    return max(bounds) if bounds else None

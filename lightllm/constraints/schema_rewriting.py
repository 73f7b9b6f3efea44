"""A JSON schema as llguidance can follow it to the end: an equal one without what the library leads into a dead end or does
not see.

    patternProperties that only a few names match   become properties: the library lets each come twice, and where the names
                                                    are properties too, it waits for one that cannot come
    a schema without a finite value                 becomes false: an output would go into it and never come out
    what is taken more widely than readers do       becomes narrower (`schema_values`)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from lightllm.constraints import schema_values

MAX_EXPANDED_CHARACTERS = 1 << 16
"""Of schemas that are written once a name."""

Node = dict[str, Any]
NamesOf = Callable[[str], list[str] | None]

_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_LISTED = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
_SINGLE = frozenset(
    ("items", "additionalItems", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
     "unevaluatedItems", "unevaluatedProperties")
)  # fmt: skip
_REPLACED = ("properties", "patternProperties", "anyOf", "oneOf", "prefixItems", "items", "additionalItems",
             "additionalProperties")  # fmt: skip
"""Where a schema that no value fits may be replaced by false."""
_TYPES = ("null", "boolean", "number", "string", "array", "object")


def rewritten(text: str, names_of: NamesOf) -> str:
    """The schema `text`, or an equal one. Raises `ValueError` for a schema that no finite value fits, and for one that would
    become too large. `names_of`: all names that a pattern of patternProperties matches; None if they are many."""
    if not any(keyword in text for keyword in ('"patternProperties"', '"$ref"', *schema_values.KEYWORDS)):
        return text
    root = json.loads(text)
    if not isinstance(root, dict):
        return text
    before = json.dumps(root)
    room = MAX_EXPANDED_CHARACTERS
    for node in [*_nodes(root)]:
        schema_values.narrow(node)
        room -= _expand(node, names_of)
        if room < 0:
            raise ValueError("the schemas of patternProperties are too large for all the names that match")
    patterns = '"patternProperties"' in text and '"$ref"' in text
    if patterns and "/patternProperties/" in "".join(_references(root)) and json.dumps(root) != before:
        raise ValueError("a $ref into patternProperties that only a few names match; let both refer to $defs")
    if '"$ref"' in text:
        _drop_what_never_ends(root)
    return text if json.dumps(root) == before else json.dumps(root, allow_nan=False)


def _children(node: Node) -> Iterator[tuple[str, Any, Any, Any]]:
    """The places of the schemas directly within one: (keyword, container, key or index, schema)."""
    for keyword, value in node.items():
        if keyword in _NAMED and isinstance(value, dict):
            yield from ((keyword, value, name, schema) for name, schema in value.items())
        elif keyword in _LISTED and isinstance(value, list):
            yield from ((keyword, value, index, schema) for index, schema in enumerate(value))
        elif keyword in _SINGLE and isinstance(value, dict):
            yield keyword, node, keyword, value


def _nodes(root: Node) -> Iterator[Node]:
    """Every schema that is an object, those included that only a $ref leads to; each once."""
    seen: set[int] = set()
    todo = [root]
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        todo += [schema for *_, schema in _children(node) if isinstance(schema, dict)]
        if isinstance(target := _target(root, node), dict):
            todo.append(target)


def _references(root: Node) -> list[str]:
    return [node["$ref"] for node in _nodes(root) if isinstance(node.get("$ref"), str)]


def _target(root: Node, node: Node) -> Any:
    """What the $ref of a schema refers to; None if that is not a place in this document."""
    reference = node.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict):
            place = place.get(part)
        elif isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        else:
            return None
    return place if reference == "#" or reference.startswith("#/") else None


# -- patternProperties


def _expand(node: Node, names_of: NamesOf) -> int:
    """Makes properties of patterns that only a few names match; how many characters that adds."""
    patterns, properties = node.get("patternProperties"), node.get("properties", {})
    if not isinstance(patterns, dict) or not isinstance(properties, dict):
        return 0
    added = 0
    for pattern, schema in [*patterns.items()]:
        names = names_of(pattern)
        if names is None:
            continue
        for name in names:
            properties[name] = {"allOf": [properties[name], schema]} if name in properties else schema
        del patterns[pattern]
        added += len(names) * len(json.dumps(schema))
    if not patterns:
        del node["patternProperties"]
    node["properties"] = properties
    return added


# -- values that end


def _drop_what_never_ends(root: Node) -> None:
    """Raises `ValueError` if that is the whole schema."""
    nodes = [*_nodes(root)]
    finite = _finite_nodes(nodes, root)
    if id(root) not in finite:
        raise ValueError(
            "no finite value fits: what it requires contains itself; leave the recursive property out of required, or "
            "give an alternative (anyOf, null)"
        )
    for node in nodes:
        for keyword, container, key, schema in [*_children(node)]:
            if keyword in _REPLACED and isinstance(schema, dict) and id(schema) not in finite:
                container[key] = False


def _finite_nodes(nodes: list[Node], root: Node) -> set[int]:
    """Ids of the schemas that have a value which ends: the least fixpoint. Each is looked at again when one that it depends on
    has become one of them."""
    dependents: dict[int, list[Node]] = {}
    for node in nodes:
        for part in (*(schema for *_, schema in _children(node)), _target(root, node)):
            dependents.setdefault(id(part), []).append(node)
    finite: set[int] = set()
    todo = nodes[:]
    while todo:
        node = todo.pop()
        if id(node) not in finite and _is_finite(node, root, finite):
            finite.add(id(node))
            todo += dependents.get(id(node), ())
    return finite


def _is_finite(node: Node, root: Node, finite: set[int]) -> bool:
    """Whether a value that ends fits the schema, as far as is known: those in `finite` have one. In doubt True."""

    def fits(schema: Any) -> bool:
        return not isinstance(schema, dict) or id(schema) in finite

    if "const" in node or "enum" in node:
        return True
    if not fits(_target(root, node)):
        return False
    if isinstance(parts := node.get("allOf"), list) and not all(map(fits, parts)):
        return False
    for keyword in ("anyOf", "oneOf"):
        if isinstance(options := node.get(keyword), list) and options and not any(map(fits, options)):
            return False
    types = node.get("type", _TYPES)
    for name in [types] if isinstance(types, str) else types if isinstance(types, list | tuple) else _TYPES:
        if name == "object":
            ends = all(map(fits, _required_properties(node))) and _has_enough_properties(node, fits)
        else:
            ends = name != "array" or all(map(fits, _required_items(node)))
        if ends:
            return True
    return False


def _required_properties(node: Node) -> list[Any]:
    """The schemas of the values that every object has."""
    properties, required = _object(node.get("properties")), _list(node.get("required"))
    others = True if node.get("patternProperties") else node.get("additionalProperties", True)
    return [properties.get(name, others) for name in required if isinstance(name, str)]


def _has_enough_properties(node: Node, fits: Callable[[Any], bool]) -> bool:
    required, least = _list(node.get("required")), node.get("minProperties", 0)
    if not isinstance(least, int | float) or least <= len(required):
        return True
    candidates = [node.get("additionalProperties", True)]
    for keyword in ("properties", "patternProperties"):
        named = _object(node.get(keyword))
        candidates += [value for name, value in named.items() if name not in required]
    return any(candidate is not False and fits(candidate) for candidate in candidates)


def _required_items(node: Node) -> list[Any]:
    """The schemas of the items that every array has."""
    least, items, first = node.get("minItems", 0), node.get("items", True), node.get("prefixItems", [])
    if isinstance(items, list):  # drafts before 2020-12
        first, items = items, node.get("additionalItems", True)
    first = _list(first)
    if not isinstance(least, int | float) or least <= 0:
        return []
    return [*first[: int(min(least, len(first)))], *([items] if least > len(first) else [])]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

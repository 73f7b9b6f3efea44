"""Constraints that strangers may send neither end the process, nor hold it up, nor fill it; ordinary ones are not refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.hostile_constraints import ATTACKS, Attack, representative

from lightllm.constraints import limits
from lightllm.constraints.check import check_constraint
from lightllm.errors import InvalidParameter
from lightllm.sampling_params import SamplingParams

TEST = Path(__file__).resolve().parents[1]


def test_no_attack_ends_the_process_or_takes_long(tmp_path: Path) -> None:
    check_attacks(tmp_path, representative(), "--representative")


@pytest.mark.slow
def test_no_attack_ends_the_process_or_takes_long_all(tmp_path: Path) -> None:
    check_attacks(tmp_path, ATTACKS)


def check_attacks(tmp_path: Path, attacks: list[Attack], *arguments: str) -> None:
    """In a process of its own: checked as by the Http Server, then followed as by the Model Backend. CPU seconds."""
    paths = os.pathsep.join([str(TEST.parent), str(TEST), os.environ.get("PYTHONPATH", "")])
    with open(tmp_path / "log", "w+b") as log:
        done = subprocess.run(
            [sys.executable, "-m", "support.constraint_attacker", *arguments],
            env=os.environ | {"PYTHONPATH": paths, "RUST_BACKTRACE": "1"},
            stdout=log, stderr=subprocess.STDOUT, timeout=300, check=False,
        )  # fmt: skip
        log.seek(0)
        lines = log.read().decode().splitlines()
    assert done.returncode == 0, lines[-20:]
    seen = [line for line in map(json.loads, lines) if "seconds" in line]
    assert {line["name"] for line in seen} == {name for name, _, text in attacks if text}
    slow = [line for line in seen if line["seconds"] > 1.5]
    assert slow == []
    assert sum(line["megabytes"] for line in seen) < 300
    assert sum(not line["refused"] for line in seen) > len(seen) // 10  # many are only odd


def told(**constraint: str) -> str:
    """What the client is told."""
    with pytest.raises(InvalidParameter) as error:
        check_constraint(SamplingParams(**constraint).verify())
    return error.value.message


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("field", "allowed", "refused", "words"),
    [
        ("regular_constraint", "a?" * 300, "a?" * 301, "more than 300 repetitions"),
        ("regular_constraint", r"\w" * 500, r"\w" * 501, "more than 500 backslashes"),
        ("guided_grammar", "start: " + '("a") ' * 300, "start: " + '("a") ' * 1501, "more than 1500 opening brackets"),
        ("guided_grammar", "start: A\nA: " + " & ".join(["/a.*/"] * 9), "start: A\nA: " + " & ".join(["/a.*/"] * 10), "more than 8 intersections"),
        ("guided_grammar", "%llguidance {}\nstart: /a/", '%llguidance {"no_forcing": false}\nstart: /a/', "takes no options"),
        ("guided_grammar", "start: %json {} %json {}", "start: %json {", "what follows %json is no JSON"),
        ("guided_grammar", "start: %json " + nested(60), "start: %json " + nested(64), "nested deeper than 64"),
        ("guided_json", nested(63), nested(64), "nested deeper than 64"),
        ("guided_json", '{"type":"integer","multipleOf":9999}', '{"type":"integer","multipleOf":10007}', "digits of multipleOf"),
        ("guided_json", '{"type":"integer","multipleOf":1000000000}', '{"multipleOf":0.0012345678}', "digits of multipleOf"),
        ("guided_json", '{"const":-9223372036854774784}', '{"const":-9223372036854775300}', "a number of -2^63 or below"),
        ("guided_json", '{"items":{"enum":[9223372036854775807]}}', '{"items":{"enum":[-1e19]}}', "a number of -2^63 or below"),
        ("guided_grammar", 'start: %json {"const":-9e18}', 'start: %json {"const":-1' + "0" * 400 + "}", "a number of -2^63 or below"),
        ("guided_json", '{"type":"object","x-guidance":{"lenient":true}}', '{"x-guidance":{"item_separator":","}}', "x-guidance takes coerce_one_of and lenient only"),
        ("guided_json", json.dumps({"type": "string", "pattern": "a?" * 900}), json.dumps({"pattern": "a?" * 1001}), "more than 1000 repetitions"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_limits(field: str, allowed: str, refused: str, words: str) -> None:
    check_constraint(SamplingParams(**{field: allowed}).verify())  # type: ignore[arg-type]
    message = told(**{field: refused})
    assert words in message and refused[:20] in message


@pytest.mark.parametrize("lark", [False, True])
def test_rules_are_counted(lark: bool) -> None:
    def grammar(rules: int) -> str:
        first, sign = ("start", ":") if lark else ("root", " ::=")
        lines = [f'{first}{sign} "x" r0', *(f'r{i}{sign} "a" | "b" r{i + 1}' for i in range(rules - 2))]
        return "\n".join([*lines, f'r{rules - 2}{sign} "c"\n'])

    limit = limits.MAX_RULES if lark else limits.MAX_GBNF_RULES
    check_constraint(SamplingParams(guided_grammar=grammar(limit)).verify())
    assert f"more than {limit} rules" in told(guided_grammar=grammar(limit + 1))


def test_a_choice_of_texts_is_only_texts() -> None:
    """Whatever signs they hold."""
    texts = [f'R&D: (a) [b] {{c}} %json /* {i} "' for i in range(700)]
    grammar = "start: " + " | ".join(json.dumps(text) for text in texts)
    check_constraint(SamplingParams(guided_grammar=grammar).verify())
    assert "more than 1500 opening brackets" in told(guided_grammar=grammar + ' | ("a")')


@pytest.mark.parametrize(
    ("grammar", "lark"),
    [
        ("start: /a/", True), ("x: /a/\n  start : x", True), ("%llguidance {}\nstart: /a/", True),
        ('root ::= start\nstart ::= "a"', False), ('root ::= "start: "', False), ("", False), ("\n" * 30_000, False),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_grammar_is_lark_or_gbnf(grammar: str, lark: bool) -> None:
    assert limits.is_lark(grammar) == lark


ORDINARY = {
    "a tool of 60 arguments": {
        "type": "object",
        "properties": {f"argument_{i}": {"type": ["string", "integer", "null"]} for i in range(60)},
        "required": [f"argument_{i}" for i in range(30)],
        "additionalProperties": False,
    },
    "one of 30 tools": {
        "anyOf": [
            {"type": "object", "properties": {"name": {"const": f"tool_{i}"}, "arguments": {"type": "object"}},
             "required": ["name", "arguments"]} for i in range(30)
        ]
    },
    "an enum of 1000": {"enum": [f"category {i} of things" for i in range(1000)]},
    "long texts": {"type": "object", "properties": {"essay": {"type": "string", "minLength": 10, "maxLength": 5000}}},
    "a tree": {
        "$ref": "#/$defs/node",
        "$defs": {"node": {"type": "object", "properties": {"next": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}},
    },
    "formats": {
        "type": "object",
        "properties": {name: {"type": "string", "format": name} for name in ("date-time", "date", "email", "uuid", "uri", "ipv4")},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_schemas_are_accepted(name: str) -> None:
    check_constraint(SamplingParams(guided_json=json.dumps(ORDINARY[name])).verify())

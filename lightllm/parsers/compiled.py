"""From a family's table and its reasoning to what the machine runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

from lightllm.parsers.table import Family, Reads, Reasoning, State, To, to
from lightllm.parsers.terminals import Terminals, find_nested

_PLAIN = {"start": State("content"), "content": State("content")}


class Node(NamedTuple):
    """A state, ready to run."""

    reads: Reads
    exits: Mapping[str, To]
    terminals: Terminals
    """Of the exits, and special tokens that are left out."""
    otherwise: str
    then: To
    newline: bool


@dataclasses.dataclass(frozen=True)
class Table:
    """A family's table joined with reasoning, for requests with or without tools."""

    nodes: Mapping[str, Node]
    hidden: frozenset[str]
    """Special tokens that the client does not see."""
    family: Family | None


@functools.lru_cache(256)
def compiled(
    family: Family | None, reasoning: Reasoning | None, hidden: frozenset[str], calls: bool
) -> Table:
    """hidden: special tokens that are in the text, and that the client does not see; calls: whether tool calls are looked for."""
    states: Mapping[str, State] = _PLAIN if family is None else family.states
    if family is not None and not calls:
        states = _without_calls(family)
    if reasoning is not None and not reasoning.built_in:
        opening, closing = reasoning.answer
        if closing:
            states = {name: _with_exit(state, closing) for name, state in states.items()}
        answer = {opening: to("start")} if opening else {}
        behind = "answer" if opening else "start"
        states = {
            **states,
            "begin": State("gap", {mark: to("reasoning") for mark in reasoning.begin} | answer, "start"),
            "reasoning": State("reasoning", {mark: to(behind) for mark in reasoning.end}),
            "answer": State("gap", answer, "start"),
        }
    nodes = {name: _node(state, hidden) for name, state in states.items()}
    return Table(nodes, hidden, family)


def _with_exit(state: State, mark: str) -> State:
    """The same, in which this marker is no content."""
    if state.reads != "content":
        return state
    return dataclasses.replace(state, exits={**state.exits, mark: to("content")})


def _without_calls(family: Family) -> Mapping[str, State]:
    """Only where reasoning is part of the table is there anything left: a call's text is content then."""
    if not family.headers:
        return _PLAIN
    return {
        name: State("content", {mark: To(way.state) for mark, way in state.exits.items()}) if state.reads == "raw" else state
        for name, state in family.states.items()
    }  # fmt: skip


def _node(state: State, hidden: frozenset[str]) -> Node:
    texts = set(state.exits)
    if state.reads in ("content", "reasoning", "raw"):
        texts |= {token for token in hidden if not find_nested([token, *state.exits])}
    return Node(state.reads, state.exits, Terminals(texts), state.otherwise, state.then, state.newline)

"""The form in which a family of models writes reasoning and tool calls, as data: states, and the markers that lead from one to another.

`families.py` holds the tables, `machine.py` runs them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

Reads = Literal[
    "content",  # text of the answer
    "reasoning",  # text of the reasoning
    "gap",  # nothing but white space is expected before a marker; anything else leads to `otherwise`
    "skip",  # text that says nothing
    "name",  # the function's name, or what holds it
    "call_id",
    "header",  # what `Family.headers` tell apart
    "raw",  # a call's arguments, as they are
    "json",  # a call's arguments: one JSON value; leads to `then`
    "object",  # a call as one JSON object, whatever the order of its members; leads to `then`
    "bare",  # a call's arguments: an object with bare keys, which becomes JSON as it comes; leads to `then`
    "python",  # a call's arguments as Python's keyword arguments, up to the bracket; leads to `then`
    "key",  # the name of a parameter
    "value",  # a parameter: text or JSON, as the function's schema says
    "text",  # a parameter that is text
    "literal",  # a parameter that is JSON
]
"""What becomes of a state's text."""

Does = Literal["open", "close", "keep", "done"]
"""With a marker: the call whose name has been read begins; the open call ends; the marker is read again in the next state; what was
read so far will not be given back."""

GIVE_BACK = ""
"""The state that gives back what was read for a call as content."""


class To(NamedTuple):
    """Where a marker leads."""

    state: str
    does: tuple[Does, ...] = ()


@dataclasses.dataclass(frozen=True)
class State:
    reads: Reads
    exits: Mapping[str, To] = dataclasses.field(default_factory=dict)
    """Marker -> where it leads."""
    otherwise: str = GIVE_BACK
    """Of a gap: the state that reads what is no marker; of an object: the state behind one that is no call."""
    then: To = To(GIVE_BACK)
    """Behind a value that has an end of its own."""
    newline: bool = False
    """A line break before the parameter's value belongs to the marker."""


def to(state: str) -> To:
    return To(state)


def opens(state: str) -> To:
    return To(state, ("open",))


def closes(state: str) -> To:
    return To(state, ("close",))


def keeps(state: str) -> To:
    return To(state, ("keep",))


def done(state: str) -> To:
    return To(state, ("done",))


class Header(NamedTuple):
    """What a header leads to."""

    pattern: str
    """A regular expression that is found in it; its group `name` is the called function's."""
    state: str


class Written(NamedTuple):
    """How calls are written, piece by piece: `before (call between)* call after`, each call
    `head NAME middle ARGUMENTS tail`. Constraints and examples are made from it."""

    head: str
    middle: str
    tail: str
    between: str = ""
    before: str = ""
    after: str = ""
    arguments: Literal["json", "parameters", "python", "bare"] = "json"
    parameter: tuple[str, str, str] = ("", "", "")
    """Around the key and the value of a parameter: before, between, behind."""
    parameter_json: tuple[str, str, str] | None = None
    """The same of one whose value is JSON, where that is told apart; else text and JSON look alike."""
    single: bool = False
    """An answer ends with its call."""
    numbered: bool = False
    """The head holds {number}: how many calls came before, over the whole conversation."""


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """How models of one family write tool calls."""

    name: str
    names: tuple[str, ...]
    """Other names that LightLLM and vLLM have for it."""
    models: str
    """For the docs."""
    states: Mapping[str, State]
    """`start` reads the answer's beginning, `content` what follows what is no call."""
    written: Written | None
    known_names: bool = False
    """Only functions that the request offers are called: without a marker anything could look like a call."""
    name_pattern: str = r"(?s)(?P<name>.*)"
    """The name within what a `name` state has read; its group `id`, if it has one, is the call's id."""
    text_quote: str = ""
    """What stands before and behind a text in arguments with bare keys."""
    id_letters: int = 0
    """Ids are so many letters and digits; 0: call_ and 24 hexadecimal digits."""
    headers: tuple[Header, ...] = ()
    marks: tuple[str, ...] = ()
    """Texts one of which a chat template of the family holds (each may be several, joined by a NUL, that it holds all)."""
    tokens: tuple[str, ...] = ()
    """Tokens all of which its vocabulary holds, where the template says nothing."""


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """How models of one family mark reasoning, which comes before everything else."""

    name: str
    names: tuple[str, ...]
    models: str
    begin: tuple[str, ...]
    end: tuple[str, ...]
    content: str = ""
    """What comes before content behind it."""
    answer: tuple[str, str] = ("", "")
    """Markers before and behind the answer that follows, which are no content; models leave them out at times."""
    built_in: bool = False
    """It is part of a family's table."""
    marks: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

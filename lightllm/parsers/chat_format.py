"""What a server knows of how its model writes, and the parsers that follow from it.

option --tool_call_parser, --reasoning_parser   or   chat template and vocabulary
  └─ ChatFormat                    one a server
       └─ ChatFormat.maker         one a request: which parser its answers get
            └─ machine.Parser      one an answer
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, TypeVar

from lightllm.parsers.call_grammar import Quoter, reasoning_before
from lightllm.parsers.calls import Rules
from lightllm.parsers.compiled import compiled
from lightllm.parsers.deltas import ContentParser, DeltaParser
from lightllm.parsers.families import FAMILIES, HARMONY, JSON_CALLS
from lightllm.parsers.machine import Parser
from lightllm.parsers.readers import ParameterTypes
from lightllm.parsers.reasoning import HARMONY as HARMONY_REASONING
from lightllm.parsers.reasoning import REASONINGS
from lightllm.parsers.table import Family, Reasoning

AUTO, NONE = "auto", "none"
_ANY_OF_TOOLS = ParameterTypes({})
_Kind = TypeVar("_Kind", bound=Family | Reasoning)


class Wishes(NamedTuple):
    """What a request wants of the parser of its answers."""

    prompt: str
    """The end of what the model answers to, as text: there the template may have opened the reasoning."""
    functions: ParameterTypes | None = None
    """Those that may be called; None: calls are not looked for."""
    parallel: bool = True
    reasoning: Literal["apart", "content", "none"] = "apart"
    shows_special: bool = False
    """The client wants to see special tokens."""
    forced: bool = False
    """Nothing but calls is written."""
    continued: bool = False
    """The prompt ends within an answer, maybe within its reasoning."""


class Maker(NamedTuple):
    """Makes the parsers of one request."""

    make: Callable[[], DeltaParser]
    reads_special_tokens: bool
    """Some of the markers are special tokens, so the answer's text must hold those."""
    start: str = "start"
    """The state of the answer's beginning."""


IDENTITY = Maker(ContentParser, False)


@dataclasses.dataclass(frozen=True, eq=False)
class ChatFormat:
    """Of one model."""

    family: Family | None = None
    reasoning: Reasoning | None = None
    special: frozenset[str] = frozenset()
    """Texts of the vocabulary's special tokens."""
    token_id: Callable[[str], int | None] = lambda text: None
    """Of a token by its text."""
    template_opens: bool = False
    """The template opens the reasoning where a request wants it, so what it leaves closed is answered without."""

    @functools.cached_property
    def quote(self) -> Quoter:
        """How texts stand in a grammar for this model."""
        return Quoter(self.special, self.token_id)

    def calls_family(self, forced: bool) -> Family | None:
        """How calls are written; those that are demanded of a model without a form of its own, as JSON."""
        return self.family or (JSON_CALLS if forced else None)

    def reasoning_before(self, start: str, content: bool) -> str:
        """Grammar of the reasoning that may come before the output `@body` of a request whose answer begins in the state `start`; "" if
        none may. content: the output is content, else calls."""
        reasoning = self.reasoning
        if (
            reasoning is None
            or start == "begin"
            and self.template_opens
            or start not in ("begin", "reasoning")
            and not (reasoning.built_in and start == "start")
        ):
            return ""
        before = reasoning.content if content else ""
        return reasoning_before(reasoning, start == "reasoning", self.quote, before)

    def maker(self, wishes: Wishes) -> Maker:
        family = self.calls_family(wishes.forced) if wishes.functions is not None or self._built_in else None
        if family is None and self.reasoning is None:
            return IDENTITY
        start = self._start(family, wishes)
        calls = wishes.functions is not None
        reads_special = not self.special.isdisjoint(self._markers(family, calls))
        hidden = self.special if reads_special and not wishes.shows_special else frozenset()
        table = compiled(family, self.reasoning, hidden, calls)
        node = table.nodes[start]
        if node.reads == "content" and not node.exits:
            return IDENTITY
        rules = Rules(wishes.functions or _ANY_OF_TOOLS, wishes.parallel, wishes.reasoning)
        return Maker(lambda: Parser(table, start, rules), reads_special, start)

    @property
    def _built_in(self) -> bool:
        """The family's table says what is reasoning."""
        return self.family is not None and bool(self.family.headers)

    def _markers(self, family: Family | None, calls: bool) -> Iterable[str]:
        if self.reasoning is not None:
            yield from (*self.reasoning.begin, *self.reasoning.end, *filter(None, self.reasoning.answer))
        if family is not None and (calls or family.headers):
            for state in family.states.values():
                yield from state.exits

    def _start(self, family: Family | None, wishes: Wishes) -> str:
        """The state of the answer's beginning."""
        prompt = wishes.prompt
        if family is not None and family.headers:
            header, opened, _ = prompt.rpartition("<|start|>")[2].partition("<|message|>")
            ways = [way.state for way in family.headers if re.search(way.pattern, header)]
            return ways[0] if opened and ways[0] in ("analysis", "final") else "start"
        if self.reasoning is None:
            return "start"
        if prompt.rstrip().endswith(self.reasoning.begin):
            return "reasoning"
        if not wishes.continued:
            return "begin"
        begins, ends = (max(map(prompt.rfind, marks)) for marks in (self.reasoning.begin, self.reasoning.end))
        return "reasoning" if begins > ends else "start"


def find_format(
    tool_call_parser: str | None,
    reasoning_parser: str | None,
    templates: Iterable[str],
    token_id: Callable[[str], int | None],
    special: frozenset[str],
) -> tuple[ChatFormat, str]:
    """The format of a model, and a line for the log. templates: the sources of its chat templates; token_id: of a token
    of the vocabulary by its text. Raises `KeyError` for names of parsers that do not exist."""
    templates = list(templates)
    text = "\n".join(templates)

    def has_token(token: str) -> bool:
        return token_id(token) is not None

    family, family_from = _chosen(FAMILIES, tool_call_parser, text, has_token)
    reasoning, reasoning_from = _chosen(REASONINGS, reasoning_parser, text, has_token)
    if family is HARMONY and reasoning_parser in (None, AUTO):
        reasoning, reasoning_from = HARMONY_REASONING, "with the tool calls"
    line = (
        f"tool calls: {_said(family, family_from)}; reasoning: {_said(reasoning, reasoning_from)} "
        "(--tool_call_parser, --reasoning_parser)"
    )
    opens = reasoning is not None and any(_opens(reasoning, template) for template in templates)
    return ChatFormat(family, reasoning, special, token_id, opens), line


def _opens(reasoning: Reasoning, template: str) -> bool:
    """Whether the generation prompt, at the template's end, may end with reasoning that has begun: no `<think></think>`, as templates
    write it to turn reasoning off."""
    _, asked, prompt = template.rpartition("add_generation_prompt")
    begins, ends = ("|".join(map(re.escape, marks)) for marks in (reasoning.begin, reasoning.end))
    return bool(asked) and re.search(rf"({begins})(?![^'\"]*({ends}))", prompt) is not None


def _said(found: Family | Reasoning | None, source: str) -> str:
    return f"{'not parsed' if found is None else found.name}, {source}"


def _chosen(
    known: tuple[_Kind, ...], name: str | None, text: str, has_token: Callable[[str], bool]
) -> tuple[_Kind | None, str]:
    if name == NONE:
        return None, "as the option says"
    if name is not None and name != AUTO:
        return names_of(known)[plain_name(name)], "as the option says"
    for one in known:
        if any(all(part in text for part in mark.split("\0")) for mark in one.marks):
            return one, "by the chat template"
    if "tools" not in text:
        for one in known:
            if one.tokens and all(map(has_token, one.tokens)) and not (text and isinstance(one, Reasoning)):
                return one, "by the vocabulary"
    return None, "nothing found in chat template and vocabulary"


def names_of(known: tuple[_Kind, ...]) -> dict[str, _Kind]:
    """Every name that one can be chosen by."""
    return {name: one for one in known for name in (one.name, *one.names)}


def plain_name(name: str) -> str:
    """As the tables write it: LightLLM and vLLM mix dashes and underscores."""
    return name.lower().replace("-", "_").replace(".", "_")


def is_tool_call_parser(name: object) -> bool:
    return isinstance(name, str) and (name in (AUTO, NONE) or plain_name(name) in names_of(FAMILIES))


def is_reasoning_parser(name: object) -> bool:
    return isinstance(name, str) and (name in (AUTO, NONE) or plain_name(name) in names_of(REASONINGS))

"""What a chat request says of tools and reasoning: which functions there are, which of them may or must be called, how its answer is
taken apart, and what it may look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from lightllm.errors import InvalidParameter
from lightllm.httpserver.openai.models import ChatRequest, Tool
from lightllm.parsers.call_grammar import Function, calls_grammar, lazy_calls_grammar
from lightllm.parsers.chat_format import ChatFormat, Maker, Wishes
from lightllm.parsers.readers import ParameterTypes
from lightllm.sampling_params import SamplingParams

_PROMPT_END = 4096
"""Characters of a prompt in which the parser looks for reasoning that the template has opened; before them, a message that is continued."""
_UNCONSTRAINED = {"call_grammar": "", "guided_json": "", "guided_grammar": "", "regular_constraint": ""}


class Tools(NamedTuple):
    """Of one request."""

    for_template: list[dict[str, Any]] | None = None
    """As plain dictionaries; none if the client forbids their use."""
    callable: tuple[Function, ...] = ()
    """Those that may be called."""
    strict: frozenset[str] = frozenset()
    """Names of those whose schema holds also where no call is demanded."""
    forced: bool = False
    """A call is demanded."""
    named: bool = False
    """The call of one function is: OpenAI's API has it called once."""

    @property
    def functions(self) -> ParameterTypes | None:
        return ParameterTypes(dict(self.callable)) if self.callable else None


class _Choice(NamedTuple):
    """What `tool_choice` says, in any of its forms."""

    mode: str
    """auto, none or required"""
    names: frozenset[str] | None = None
    """Functions that may be called; None: all."""
    others_hidden: bool = False
    """The model is not told of other functions."""


def read_tools(request: ChatRequest) -> Tools:
    """Raises `InvalidParameter` for what contradicts itself, or is not supported."""
    tools, choice, field = request.tools, request.tool_choice, "tool_choice"
    if request.functions:
        if tools:
            raise InvalidParameter("functions is the old name of tools: give one of them", param="functions")
        tools = [Tool(type="function", function=function) for function in request.functions]
    if request.function_call is not None:
        if choice is not None:
            raise InvalidParameter(
                "function_call is the old name of tool_choice: give one of them", param="function_call"
            )
        choice, field = request.function_call, "function_call"
    asked = _read_choice(choice, field)
    if not tools:
        if asked.mode == "required":
            raise InvalidParameter(f"{field} demands a call, but there are no tools", param=field)
        return Tools()
    if asked.mode == "none":
        return Tools()
    names = asked.names
    known = {tool.function.name for tool in tools}
    if names is not None and not names <= known:
        missing = min(names - known)
        raise InvalidParameter(f"{field} names {missing[:64]!r}, which is not among the tools", param=field)
    told = [tool for tool in tools if not asked.others_hidden or names is None or tool.function.name in names]
    called = [tool.function for tool in told if names is None or tool.function.name in names]
    return Tools(
        [tool.model_dump(exclude_none=True) for tool in told],
        tuple(Function(one.name, one.parameters or {}) for one in called),
        frozenset(one.name for one in called if one.strict),
        asked.mode == "required",
        asked.mode == "required" and names is not None and not asked.others_hidden,
    )


def _read_choice(choice: Any, field: str) -> _Choice:
    if choice is None or choice == "auto":
        return _Choice("auto")
    if choice in ("none", "required"):
        return _Choice(choice)
    if isinstance(choice, Mapping):
        if choice.get("type") == "allowed_tools":
            allowed = choice.get("allowed_tools", choice)  # /v1/responses has them beside the type
            names = (
                [_name(tool) for tool in allowed.get("tools") or ()] if isinstance(allowed, Mapping) else []
            )
            mode = allowed.get("mode", "auto") if isinstance(allowed, Mapping) else None
            if names and all(names) and mode in ("auto", "required"):
                return _Choice(mode, frozenset(map(str, names)), others_hidden=True)
        elif name := _name(choice):
            return _Choice("required", frozenset({name}))
    raise InvalidParameter(
        f"{field} must be none, auto, required, a function by its name, or allowed_tools with tools and a mode (auto, required)",
        param=field,
    )


def _name(choice: Any) -> str | None:
    """Of the function in `{"type": "function", "function": {"name": ...}}`, or in a shorter form."""
    if not isinstance(choice, Mapping) or choice.get("type", "function") != "function":
        return None
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) and name else None


def parser_maker(chat_format: ChatFormat, request: ChatRequest, tools: Tools, prompt: str) -> Maker:
    """What takes the answers to a request apart; prompt: as the template has rendered it."""
    reasoning: Any = "apart"
    if request.separate_reasoning is False:
        reasoning = "content"
    if request.include_reasoning is False:
        reasoning = "none"
    return chat_format.maker(
        Wishes(
            prompt[-_PROMPT_END - _continued(request) :],
            tools.functions,
            _parallel(request, tools),
            reasoning,
            request.skip_special_tokens is False,
            tools.forced,
            bool(request.continue_final_message),
        )
    )


def _continued(request: ChatRequest) -> int:
    """Characters of the message that the answer goes on with."""
    if not request.continue_final_message:
        return 0
    last = request.messages[-1]
    parts = last.content if isinstance(last.content, list) else [last.content]
    texts = [*(part if isinstance(part, str) else getattr(part, "text", None) for part in parts), last.reasoning_content,
             last.reasoning, last.thinking]  # fmt: skip
    return sum(len(text) for text in texts if isinstance(text, str))


def constrained(
    params: SamplingParams, chat_format: ChatFormat, request: ChatRequest, tools: Tools, start: str
) -> SamplingParams:
    """With what the tools and reasoning of a request add to its constraint. start: `Maker.start`. Raises `InvalidParameter`."""
    grammar = _call_grammar(params, chat_format, request, tools)
    if grammar:
        params = replace(params, **(_UNCONSTRAINED | {"call_grammar": grammar})).verify()
    if not params.constrained:
        return params
    prefix = chat_format.reasoning_before(start, content=not grammar)
    return replace(params, constraint_prefix=prefix) if prefix else params


def _call_grammar(
    params: SamplingParams, chat_format: ChatFormat, request: ChatRequest, tools: Tools
) -> str | None:
    family = chat_format.calls_family(tools.forced)
    parallel = _parallel(request, tools)
    if family is None or not tools.callable:
        return None
    try:
        if tools.forced:
            return calls_grammar(family, tools.callable, chat_format.quote, parallel)
        if params.guided_json:
            before = chat_format.reasoning.content if chat_format.reasoning else ""
            content = f"{chat_format.quote(before)} %json {params.guided_json}"
            return calls_grammar(family, tools.callable, chat_format.quote, parallel, content)
        if tools.strict and not params.constrained:
            functions = [
                one if one.name in tools.strict else Function(one.name, {}) for one in tools.callable
            ]
            return lazy_calls_grammar(family, functions, chat_format.quote, parallel)
    except ValueError as error:
        raise InvalidParameter(str(error), param="tools") from error
    return None


def _parallel(request: ChatRequest, tools: Tools) -> bool:
    """More than one call; with OpenAI's old names there is but one."""
    asked = request.parallel_tool_calls
    return (not tools.named if asked is None else asked) and not request.functions

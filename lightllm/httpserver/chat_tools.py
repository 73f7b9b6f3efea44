"""What a chat request says of tools and reasoning: which functions there are, which of them may be called, how its answer is taken
apart."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter
from lightllm.httpserver.openai_models import ChatRequest, Tool
from lightllm.parsers.chat_format import ChatFormat, Maker, Wishes
from lightllm.parsers.readers import ParameterTypes

_PROMPT_END = 512
"""Characters of a prompt in which the parser looks for reasoning that the template has opened."""


class Tools(NamedTuple):
    """Of one request."""

    for_template: list[dict[str, Any]] | None
    """As plain dictionaries; none if the client forbids their use."""
    functions: ParameterTypes | None
    """Those that may be called."""


_NO_TOOLS = Tools(None, None)


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
    if not tools or choice == "none":
        return _NO_TOOLS
    if choice not in (None, "auto"):
        raise InvalidParameter(f"{field} other than 'auto' and 'none' is not supported yet", param=field)
    functions = {tool.function.name: tool.function.parameters or {} for tool in tools}
    return Tools([tool.model_dump(exclude_none=True) for tool in tools], ParameterTypes(functions))


def parser_maker(chat_format: ChatFormat, request: ChatRequest, tools: Tools, prompt: str) -> Maker:
    """What takes the answers to a request apart; prompt: as the template has rendered it."""
    reasoning: Any = "apart"
    if request.separate_reasoning is False:
        reasoning = "content"
    if request.include_reasoning is False:
        reasoning = "none"
    return chat_format.maker(
        Wishes(
            prompt[-_PROMPT_END:],
            tools.functions,
            request.parallel_tool_calls is not False,
            reasoning,
            request.skip_special_tokens is False,
        )
    )

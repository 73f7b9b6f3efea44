"""A request to Anthropic's `/v1/messages` as the chat that it means: from there on it goes the way of all chats.

Anthropic                                   chat
system                                      a message with the role system
tool_result                                 a message with the role tool, before what else the turn holds
tool_use                                    tool_calls
thinking                                    reasoning_content
image                                       an image_url part
tool_choice any, tool                       required, the function's name
an assistant's message at the end           is continued
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.httpserver.anthropic.models import (
    Block,
    CountTokensRequest,
    InnerBlock,
    MessagesRequest,
    MessagesTool,
    Turn,
)
from lightllm.httpserver.openai.chat_messages import THINKING
from lightllm.httpserver.openai.models import (
    CalledFunction,
    ChatRequest,
    ContentPart,
    Message,
    Tool,
    ToolCall,
    ToolFunction,
)
from lightllm.httpserver.reading import other_fields
from lightllm.httpserver.reading.sampling_fields import names

_BILLING = "x-anthropic-billing-header"
"""How a line begins that Claude Code puts before the system prompt: it differs from request to request, and would keep every
prompt out of the prefix cache."""
_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that templates do not know."""
_Content = list[ContentPart | str]
_TOOL_MODES = {"auto": "auto", "any": "required", "none": "none"}


def as_chat(body: CountTokensRequest) -> ChatRequest:
    """Raises `InvalidParameter` for what is not supported, and names where it stands."""
    other_fields.check(
        body, body.model_extra, other_fields.MESSAGES_REFUSED, other_fields.MESSAGES_HARMLESS, "/v1/messages"
    )
    if body.n not in (None, 1):
        raise InvalidParameter("n is not supported: a message is one answer", param="n")
    fields: dict[str, Any] = {name: getattr(body, name) for name in names("openai")}
    if isinstance(body, MessagesRequest):
        if body.stop is not None:
            raise InvalidParameter("stop is not supported: use stop_sequences", param="stop")
        fields |= {"stop": body.stop_sequences, "stream": body.stream}
    fields |= _tool_fields(body) | _thinking_fields(body)
    fields["json_schema"] = _schema(body)
    messages = [*_system(body.system), *_messages(body.messages)]
    if not messages:
        raise InvalidParameter("messages hold nothing", param="messages")
    last = messages[-1]
    if last.role == "assistant" and not last.tool_calls:
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    return ChatRequest(messages=messages, **fields)


def shows_thinking(body: CountTokensRequest) -> bool:
    """Whether the client wants to be told what the model thinks."""
    if body.thinking is not None:
        return body.thinking.type != "disabled" and body.thinking.display != "omitted"
    return any((body.chat_template_kwargs or {}).get(name) for name in THINKING)


def _thinking_fields(body: CountTokensRequest) -> dict[str, Any]:
    """Without `thinking` a model is asked not to think, as Anthropic has it. None of it is demanded: a template that knows no such
    switch, or no effort, is as good as it can be."""
    variables: dict[str, Any] = {}
    if body.thinking is not None or not any(name in (body.chat_template_kwargs or {}) for name in THINKING):
        thinks = body.thinking is not None and body.thinking.type != "disabled"
        variables = dict.fromkeys(THINKING, thinks)
    effort = body.output_config.effort if body.output_config is not None else None
    if effort is not None:
        variables["reasoning_effort"] = _EFFORTS.get(effort, effort)
    return {
        "chat_template_kwargs": {**variables, **(body.chat_template_kwargs or {})},
        "include_reasoning": shows_thinking(body),
    }


def _schema(body: CountTokensRequest) -> dict[str, Any] | None:
    new = body.output_config.format if body.output_config is not None else None
    if new is not None and body.output_format is not None:
        raise InvalidParameter(
            "output_format is the old name of output_config.format: give one of them", param="output_format"
        )
    found = new or body.output_format
    return None if found is None else found.schema_


# -- tools


def _tool_fields(body: CountTokensRequest) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if body.tools:
        fields["tools"] = [_tool(tool, place) for place, tool in enumerate(body.tools)]
    choice = body.tool_choice
    if choice is None:
        return fields
    if choice.type == "tool":
        if not choice.name:
            raise InvalidParameter("tool_choice of type tool needs a name", param="tool_choice")
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        fields["tool_choice"] = _TOOL_MODES[choice.type]
    if choice.disable_parallel_tool_use is not None:
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return fields


def _tool(tool: MessagesTool, place: int) -> Tool:
    if tool.type not in (None, "custom"):
        raise InvalidParameter(
            f"tools.{place}: the type {tool.type[:64]!r} is not supported, only custom tools are",
            param="tools",
        )
    if tool.input_schema is None:
        raise InvalidParameter(f"tools.{place} has no input_schema", param="tools")
    function = ToolFunction(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return Tool(type="function", function=function)


# -- messages


def _system(system: str | Sequence[InnerBlock] | None) -> Iterable[Message]:
    blocks = [InnerBlock(type="text", text=system)] if isinstance(system, str) else system or ()
    parts = [_content_part(block, f"system.{place}") for place, block in enumerate(blocks)]
    if any(part.type != "text" for part in parts):
        raise InvalidParameter("system takes text only", param="system")
    told: _Content = [part for part in parts if part.text]
    return [Message(role="system", content=told)] if told else []


def _messages(turns: Sequence[Turn]) -> Iterable[Message]:
    for place, turn in enumerate(turns):
        if isinstance(turn.content, str):
            yield Message(role=turn.role, content=_without_billing(turn.content))
        elif turn.role == "assistant":
            yield _assistant(turn.content, f"messages.{place}.content")
        else:
            yield from _user(turn.role, turn.content, f"messages.{place}.content")


def _user(role: str, blocks: Sequence[Block], where: str) -> Iterable[Message]:
    parts: _Content = []
    for place, block in enumerate(blocks):
        if block.type == "tool_result":
            yield _tool_result(block, f"{where}.{place}")
        else:
            parts.append(_content_part(block, f"{where}.{place}"))
    if parts or not blocks:
        yield Message(role=role, content=parts)


def _tool_result(block: Block, where: str) -> Message:
    if not block.tool_use_id:
        raise InvalidParameter(f"{where} has no tool_use_id", param="messages")
    content = block.content or ""
    parts: _Content = (
        [ContentPart(type="text", text=content)]
        if isinstance(content, str)
        else [_content_part(part, f"{where}.content.{place}") for place, part in enumerate(content)]
    )
    if block.is_error:
        parts.insert(0, ContentPart(type="text", text="Error:"))
    return Message(role="tool", tool_call_id=block.tool_use_id, content=parts)


def _assistant(blocks: Sequence[Block], where: str) -> Message:
    parts: _Content = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for place, block in enumerate(blocks):
        if block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            if not block.name or not block.id:
                raise InvalidParameter(
                    f"{where}.{place}: a tool_use needs an id and a name", param="messages"
                )
            arguments = json.dumps(block.input or {}, ensure_ascii=False)
            function = CalledFunction(name=block.name, arguments=arguments)
            calls.append(ToolCall(id=block.id, type="function", function=function))
        elif block.type != "redacted_thinking":
            parts.append(_content_part(block, f"{where}.{place}"))
    return Message(
        role="assistant",
        content=parts,
        reasoning_content="\n".join(thoughts) if thoughts else None,
        tool_calls=calls or None,
    )


def _content_part(block: InnerBlock, where: str) -> ContentPart:
    """Text, or an image."""
    if block.type == "text":
        if block.text is None:
            raise InvalidParameter(f"{where}: a text block has no text", param=where.partition(".")[0])
        return ContentPart(type="text", text=_without_billing(block.text))
    source = block.source if isinstance(block.source, Mapping) else {}
    kind, data = source.get("type"), source.get("data")
    if block.type == "image" and kind == "base64":
        return ContentPart(type="image_url", image_url=f"data:{source.get('media_type')};base64,{data}")
    if block.type == "image" and kind == "url":
        return ContentPart(type="image_url", image_url=source.get("url"))
    if block.type == "document" and kind == "text" and isinstance(data, str):
        return ContentPart(type="text", text="\n".join(filter(None, (block.title, data))))
    of = f" with a source of type {str(kind)[:64]!r}" if block.type in ("image", "document") else ""
    raise InvalidParameter(
        f"{where}: a block of type {block.type[:64]!r}{of} is not supported", param=where.partition(".")[0]
    )


def _without_billing(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(_BILLING) else text

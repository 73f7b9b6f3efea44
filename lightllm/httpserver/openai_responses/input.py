"""From a body of `/v1/responses` to the chat request that asks for the same: items become messages.

A model's turn is one message for a chat template, and several items here: reasoning, text, calls.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter, RequestError
from lightllm.http.body import validate_values
from lightllm.httpserver.openai.models import ChatRequest
from lightllm.httpserver.openai_responses.items import item_id
from lightllm.httpserver.openai_responses.models import (
    RESPONSES_HARMLESS,
    RESPONSES_REFUSED,
    InputItem,
    InputPart,
    ResponsesRequest,
    ResponseTool,
    TextOptions,
)
from lightllm.httpserver.reading import other_fields

_SHOWN = 40
"""Characters of a wrong value that an error repeats."""
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Type of a part -> the field with its text."""
LOGPROBS = "message.output_text.logprobs"
_INCLUDED = frozenset({"reasoning.encrypted_content", "message.input_image.image_url"})
"""What the answer, or the list of its input, holds anyway: reasoning stands in it as it was written."""
_OTHERS_TOOLS = ("file_search_call.", "web_search_call.", "computer_call_output.", "code_interpreter_call.")
"""Of items that no answer has here."""
_NAMES = {
    "messages": "input", "response_format": "text.format", "reasoning_effort": "reasoning.effort",
    "max_completion_tokens": "max_output_tokens",
}  # fmt: skip
"""Field of the chat request -> what the client calls it."""
_NAME = re.compile(rf"\b({'|'.join(_NAMES)})\b(\.[0-9]+)?")


class ChatOfResponse(NamedTuple):
    request: ChatRequest
    places: list[str]
    """Where the client finds each message: "input.3"."""


def chat_request(body: ResponsesRequest, earlier: Sequence[InputItem] = ()) -> ChatOfResponse:
    """earlier: the items of the responses that this one follows. Raises `InvalidParameter` and `MalformedBody`."""
    extra = body.model_extra or {}
    other_fields.check(body, extra, RESPONSES_REFUSED, frozenset(extra), "/v1/responses")
    _check_fields(body)
    reader = _Reader()
    if body.instructions:
        reader.message("system", body.instructions, "instructions")
    for item in earlier:
        reader.item(item, "previous_response_id")
    if isinstance(body.input, str):
        reader.message("user", body.input, "input")
    else:
        for index, item in enumerate(body.input):
            reader.item(item, f"input.{index}")
    if not reader.messages:
        raise InvalidParameter("input is empty, and there are no instructions", param="input")
    values: dict[str, Any] = {name: value for name, value in extra.items() if name not in RESPONSES_HARMLESS}
    values |= {
        "model": body.model,
        "messages": reader.messages,
        "stream": body.stream,
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "response_format": _response_format(body.text),
        "tools": [_tool(tool, index) for index, tool in enumerate(body.tools or ())] or None,
        "tool_choice": body.tool_choice,
        "parallel_tool_calls": body.parallel_tool_calls,
        "logprobs": bool(body.top_logprobs) or LOGPROBS in (body.include or ()) or None,
        "top_logprobs": body.top_logprobs,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
    }
    with in_their_words(reader.places):
        request = validate_values(ChatRequest, {name: v for name, v in values.items() if v is not None})
    return ChatOfResponse(request, reader.places)


@contextlib.contextmanager
def in_their_words(places: Sequence[str]) -> Iterator[None]:
    """Errors about the chat request name what the client has sent."""

    def renamed(match: re.Match[str]) -> str:
        name, index = match[1], match[2]
        if name == "messages" and index is not None and int(index[1:]) < len(places):
            return places[int(index[1:])]
        return _NAMES[name] + (index or "")

    try:
        yield
    except RequestError as error:
        if error.param is None or not _NAME.match(error.param):
            raise
        message, param = _NAME.sub(renamed, error.message), _NAME.sub(renamed, error.param)
        raise type(error)(message, param, error.retry_after) from error


def _check_fields(body: ResponsesRequest) -> None:
    for name in body.include or ():
        if name not in _INCLUDED and name != LOGPROBS and not name.startswith(_OTHERS_TOOLS):
            raise InvalidParameter(f"include {name[:_SHOWN]!r} is not supported", param="include")
    if body.truncation not in (None, "disabled", "auto"):
        raise InvalidParameter(
            f"truncation must be auto or disabled, not {body.truncation[:_SHOWN]!r}", param="truncation"
        )
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise InvalidParameter("text.verbosity is not supported", param="text.verbosity")


def _response_format(text: TextOptions | None) -> dict[str, Any] | None:
    form = text.format if text else None
    if form is None or form.type == "text":
        return None
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": form.type, "json_schema": {"name": form.name, "schema": form.schema_}}


def _tool(tool: ResponseTool, index: int) -> dict[str, Any]:
    if tool.type != "function":
        raise InvalidParameter(
            f"tools.{index}: type {tool.type[:_SHOWN]!r} is not supported, only function: this server runs no tools",
            param="tools",
        )
    if not tool.name:
        raise InvalidParameter(f"tools.{index} has no name", param="tools")
    return {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type"})}


_IDS = {"function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
"""Type of an item -> what its id begins with; else "msg"."""


def input_items(body: ResponsesRequest, response_id: str) -> list[dict[str, Any]]:
    """The items of an input as they are listed later: each with a type and an id, contents as parts."""
    given = body.input
    if isinstance(given, str):
        given = [InputItem(role="user", content=given)]
    items = []
    for index, one in enumerate(given):
        item = one.model_dump(exclude_none=True)
        kind = item.setdefault("type", "message")
        item.setdefault("id", item_id(_IDS.get(kind, "msg"), response_id, f"i{index}"))
        if kind == "message" and isinstance(one.content, str):
            part = "output_text" if one.role == "assistant" else "input_text"
            item["content"] = [{"type": part, "text": one.content}]
        items.append(item)
    return items


class _Reader:
    """Collects the messages of one conversation."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: list[str] = []
        self._calls: set[str] = set()

    def item(self, item: InputItem, place: str) -> None:
        """Raises `InvalidParameter`, naming the place."""
        kind = item.type or ("message" if item.role is not None else "")
        if kind == "message":
            self._message(item, place)
        elif kind == "reasoning":
            text = "\n".join(part.text or "" for part in _parts(item.content) or item.summary or ())
            turn = self._turn(place)
            if turn["content"] is not None or turn.get("tool_calls"):
                self.message("assistant", None, place)  # another turn
                turn = self.messages[-1]
            if text:
                turn["reasoning_content"] = "\n".join(filter(None, (turn.get("reasoning_content"), text)))
        elif kind == "function_call":
            call_id, name = _required(item, "call_id", place), _required(item, "name", place)
            function = {"name": name, "arguments": _required(item, "arguments", place)}
            self._calls.add(call_id)
            calls = self._turn(place).setdefault("tool_calls", [])
            calls.append({"id": call_id, "type": "function", "function": function})
        elif kind == "function_call_output":
            self._output(item, place)
        elif not kind:
            raise InvalidParameter(f"{place} has neither a type nor a role", param=_top(place))
        else:
            raise InvalidParameter(
                f"{place}: items of type {kind[:_SHOWN]!r} are not supported: message, function_call, "
                "function_call_output, reasoning and item_reference are",
                param=_top(place),
            )

    def message(self, role: str, content: Any, place: str) -> None:
        self.messages.append({"role": role, "content": content})
        self.places.append(place)

    def _message(self, item: InputItem, place: str) -> None:
        if item.role is None:
            raise InvalidParameter(f"{place} has no role", param=_top(place))
        if item.content is None:
            raise InvalidParameter(f"{place} has no content", param=_top(place))
        content = (
            item.content if isinstance(item.content, str) else [_part(part, place) for part in item.content]
        )
        if item.role != "assistant":
            self.message(item.role, content, place)
            return
        turn = self._turn(place)
        if turn.get("tool_calls") or turn["content"] is not None:
            # text after a call, or a second text, is a message of its own: templates put a call behind its text
            self.message("assistant", content, place)
        else:
            turn["content"] = content

    def _output(self, item: InputItem, place: str) -> None:
        call_id = _required(item, "call_id", place)
        if call_id not in self._calls:
            raise InvalidParameter(
                f"{place}: no function_call before it has the call_id {call_id[:_SHOWN]!r}", param=_top(place)
            )
        if item.output is None:
            raise InvalidParameter(f"{place} has no output", param=_top(place))
        output = item.output if isinstance(item.output, str) else [_part(part, place) for part in item.output]
        self.message("tool", output, place)
        self.messages[-1]["tool_call_id"] = call_id

    def _turn(self, place: str) -> dict[str, Any]:
        """The message of the model's turn that goes on, or begins."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            self.message("assistant", None, place)
        return self.messages[-1]


def _part(part: InputPart, place: str) -> dict[str, Any]:
    """As chats have it."""
    if part.type == "input_image":
        if part.image_url is None:
            raise InvalidParameter(
                f"{place}: an input_image needs an image_url; files are not kept", param=_top(place)
            )
        return {"type": "image_url", "image_url": _image(part)}
    field = _TEXTS.get(part.type)
    if field is None:
        raise InvalidParameter(
            f"{place}: content of type {part.type[:_SHOWN]!r} is not supported, only text and images",
            param=_top(place),
        )
    text = getattr(part, field)
    if text is None:
        raise InvalidParameter(f"{place}: a {part.type} part has no {field}", param=_top(place))
    return {"type": "text", "text": text}


def _image(part: InputPart) -> Any:
    if part.detail is None or not isinstance(part.image_url, str):
        return part.image_url
    return {"url": part.image_url, "detail": part.detail}


def _parts(content: str | list[InputPart] | None) -> list[InputPart]:
    if isinstance(content, str):
        return [InputPart(type="reasoning_text", text=content)]
    return content or []


def _required(item: InputItem, name: str, place: str) -> str:
    value: str | None = getattr(item, name)
    if value is None:
        raise InvalidParameter(f"{place}: a {item.type} needs {name}", param=_top(place))
    return value


def _top(place: str) -> str:
    return place.partition(".")[0]

"""A client's messages in the form that one chat template reads; what the template would leave out is refused.

Whether a message is read shows a rendering of the same conversation, the same roles in the same order, with a short word in
the place of every text: a word that does not appear, and whose change changes nothing, belongs to a message that the model
would never see. So nothing that a template does to texts (trimming, escaping, cutting reasoning out) looks like a loss.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter
from lightllm.templating.template import Message, Template
from lightllm.templating.traits import Traits, content, parts

REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""What reasoning is called by clients and by templates; a template gets it under each name."""
_OTHER_ROLES: tuple[dict[str, str], ...] = (
    {},
    {"developer": "system"},
    {"function": "tool"},
    {"developer": "system", "function": "tool"},
)
"""What roles are taken for where a template does not know them, in this order."""
_MAX_CHANGES = 16
"""Words of one conversation that are looked for by changing them."""
_MAX_KNOWN = 512


@dataclasses.dataclass(frozen=True)
class _Loss:
    index: int
    """In the client's messages."""
    place: int
    """A tool call of the message, or `_TEXT`."""


class _Arrangement(NamedTuple):
    """How the messages of one conversation are given to a template."""

    roles: dict[str, str]
    """Role of a message -> what it is taken for."""
    merged: bool
    """Neighbours of the same role are one message: some templates take one system message, or want roles to alternate."""


class Conversations:
    """Of one template: the arrangements that were found for conversations of the same shape are kept."""

    def __init__(self, template: Template, traits: Traits) -> None:
        self._template = template
        self._traits = traits
        self._known: dict[str, _Arrangement] = {}

    def arrange(
        self, messages: list[Any], context: dict[str, Any], image_marker: str | None = None
    ) -> list[Message]:
        """image_marker: what stands for an image in a text, for templates that read texts only. Raises `InvalidParameter`, naming
        the message, for one that the template leaves out."""
        plain = canonical(messages)
        if not self._traits.parts:
            if image_marker is not None:
                plain = [_with_markers(message, image_marker) for message in plain]
            _refuse_media(plain)
        shape = _shape(plain, context)
        arrangement = self._known.get(shape)
        if arrangement is None:
            arrangement, final = self._find_arrangement(plain, context)
            if final:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[shape] = arrangement
        return [message for message, _ in self._formed(plain, arrangement)]

    def _find_arrangement(
        self, messages: list[Message], context: dict[str, Any]
    ) -> tuple[_Arrangement, bool]:
        """The first with which nothing is lost, and whether that is certain."""
        used = {message.get("role") for message in messages}
        losses: list[_Loss] = []
        for merged, roles in itertools.product((False, True), _OTHER_ROLES):
            arrangement = _Arrangement(roles, merged)
            if not roles.keys() <= used or (merged and not self._can_merge(messages, arrangement)):
                continue
            try:
                loss = self._first_loss(self._formed(messages, arrangement), context)
            except InvalidParameter:
                continue  # refused: with other roles, or by the rendering of the texts themselves
            if loss is None:
                return arrangement, True
            losses.append(loss)
        if losses:
            loss = max(losses, key=lambda loss: loss.index)
            raise InvalidParameter(_explained(messages[loss.index], loss), param="messages")
        return _Arrangement({}, False), False

    def _can_merge(self, messages: list[Message], arrangement: _Arrangement) -> bool:
        """Whether merging makes a difference."""
        apart = arrangement._replace(merged=False)
        return len(self._formed(messages, arrangement)) < len(self._formed(messages, apart))

    def _first_loss(self, formed: list[tuple[Message, int]], context: dict[str, Any]) -> _Loss | None:
        words = [_worded(message, number) for number, (message, _) in enumerate(formed)]
        text = self._template.render(words, context)
        changes = 0
        for number, (message, index) in enumerate(formed):
            for place, places in _words_of(message, number):
                if any(word in text for word in places) or changes == _MAX_CHANGES:
                    continue
                changes += 1
                other = [*words]
                other[number] = _worded(message, number, changed=place)
                if self._template.render(other, context) == text:
                    return _Loss(index, place)
        return None

    def _formed(self, messages: list[Message], arrangement: _Arrangement) -> list[tuple[Message, int]]:
        """The messages as the template reads them, each with its index in the client's."""
        roles = arrangement.roles
        formed: list[tuple[Message, int]] = []
        for index, message in enumerate(messages):
            role = message.get("role")
            mapped = message if role not in roles else {**message, "role": roles[role]}
            formed += [(part, index) for part in _formed_message(mapped, self._traits)]
        return _merged(formed) if arrangement.merged else formed


def _merged(formed: list[tuple[Message, int]]) -> list[tuple[Message, int]]:
    """Texts of the same role that follow one another as one message, with the index of the first."""
    result: list[tuple[Message, int]] = []
    for message, index in formed:
        before = result[-1][0] if result else {}
        joined = _joined(before, message) if before.keys() == message.keys() == {"role", "content"} else None
        if joined is None:
            result.append((message, index))
        else:
            result[-1] = joined, result[-1][1]
    return result


def _joined(first: Message, second: Message) -> Message | None:
    """None for messages of different roles; results of tools belong to different calls."""
    texts = first["content"], second["content"]
    if first["role"] != second["role"] or first["role"] in ("tool", "function"):
        return None
    if all(isinstance(text, str) for text in texts):
        return {"role": first["role"], "content": "\n\n".join(filter(None, texts))}
    if all(isinstance(text, list) for text in texts):
        return {"role": first["role"], "content": [*texts[0], *texts[1]]}
    return None


def canonical(messages: list[Any]) -> list[Message]:
    """Copies with one name for one thing: OpenAI's deprecated `function_call` is a tool call, null is no text."""
    result = []
    function_call_id = "call00000"
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidParameter(
                f"messages.{index}: a message must be an object, got {type(message).__name__}",
                param="messages",
            )
        copy = _with_reasoning(message)
        if copy.get("content", "") is None:
            copy["content"] = ""
        call = copy.pop("function_call", None)
        if call is not None:
            if copy.get("tool_calls"):
                raise InvalidParameter(
                    f"messages.{index} has both tool_calls and function_call", param="messages"
                )
            function_call_id = f"call{index:05d}"  # nine letters and digits, as Mistral's templates demand
            copy["tool_calls"] = [{"id": function_call_id, "type": "function", "function": call}]
            copy.setdefault("content", "")
        elif copy.get("role") == "function":
            copy.setdefault("tool_call_id", function_call_id)
        if not copy.get("tool_calls"):
            copy.pop("tool_calls", None)  # empty it says the same, but templates ask whether there is one
        result.append(copy)
    return result


def _with_markers(message: Message, marker: str) -> Message:
    """A content of texts and images as one text, each in a line of its own."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    lines = [marker if part == {"type": "image"} else part.get("text") for part in content]
    return message if None in lines else {**message, "content": "\n".join(lines)}


def _refuse_media(messages: list[Message]) -> None:
    """Raises `InvalidParameter` for parts that have nothing but a type: they keep the place of what is no text."""
    for index, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.keys() == {"type"}:
                raise InvalidParameter(
                    f"messages.{index}: the model's chat template reads texts only, it has no place for content of type "
                    f"{str(part['type'])[:40]!r}",
                    param="messages",
                )


def _with_reasoning(message: Message) -> Message:
    """A copy with the reasoning, if there is one, under each name that holds no other."""
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name)), None)
    if reasoning is None:
        return dict(message)
    return message | {name: message.get(name) or reasoning for name in REASONING_FIELDS}


def _formed_message(message: Message, traits: Traits) -> list[Message]:
    text = message.get("content")
    if traits.typed_content and isinstance(text, str):
        message = {**message, "content": parts(text)}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return [message]
    calls = [_formed_call(call, traits) for call in calls]
    empty = None if traits.null_content else content("", traits)
    if not text:
        return [{**message, "content": empty, "tool_calls": calls}]
    if not traits.calls_apart:
        return [{**message, "tool_calls": calls}]
    before = {name: value for name, value in message.items() if name != "tool_calls"}
    return [before, {"role": message.get("role"), "content": empty, "tool_calls": calls}]


def _formed_call(call: Any, traits: Traits) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str) and not traits.text_arguments:
        arguments = _as_object(arguments)
    elif isinstance(arguments, dict) and traits.text_arguments:
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif arguments is None:
        arguments = "{}" if traits.text_arguments else {}
    return {**call, "function": {**function, "arguments": arguments}}


def _as_object(arguments: str) -> Any:
    """The object that a JSON text holds; a text that holds none, as models sometimes write it, stays as it is."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


# -- words in the place of texts

_TEXT = -1
"""The place of a message's text; its tool calls are counted from 0."""


def _worded(message: Message, number: int, changed: int | None = None) -> Message:
    """The message with a word for each of its texts; with another word for the one in the place `changed`."""
    result = dict(message)
    if _text_of(message):
        word = _text_word(number, changed == _TEXT)
        result["content"] = word if isinstance(message["content"], str) else parts(word)
    for name in REASONING_FIELDS:
        if isinstance(message.get(name), str) and message[name].strip():
            result[name] = f"zqreasoning{number}qz"
    if isinstance(message.get("tool_calls"), list):
        result["tool_calls"] = [
            _worded_call(call, _call_words(number, place, changed == place))
            for place, call in enumerate(message["tool_calls"])
        ]
    return result


def _worded_call(call: Any, words: tuple[str, str]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    name, value = words
    arguments: Any = {"zqkey": value}
    if isinstance(function.get("arguments"), str):
        arguments = json.dumps(arguments)
    return {**call, "function": {**function, "name": name, "arguments": arguments}}


def _words_of(message: Message, number: int) -> list[tuple[int, tuple[str, ...]]]:
    """The places of what must not get lost, and the words that stand there.

    A text beside tool calls is not among them: what a model says while it calls is cut out of earlier turns by some templates
    (gpt-oss), and has no place in others (Llama 3.1, Mistral)."""
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        functions = [isinstance(call, dict) and isinstance(call.get("function"), dict) for call in calls]
        return [(place, _call_words(number, place)) for place, known in enumerate(functions) if known]
    return [(_TEXT, (_text_word(number),))] if _text_of(message) else []


def _text_of(message: Message) -> str:
    value = message.get("content")
    if isinstance(value, list):
        value = "".join(str(part.get("text") or "") for part in value if isinstance(part, dict))
    return value.strip() if isinstance(value, str) else ""


def _text_word(number: int, changed: bool = False) -> str:
    return f"Another{number}text" if changed else f"zqtext{number}qz"


def _call_words(number: int, place: int, changed: bool = False) -> tuple[str, str]:
    """Name of the function, value of its argument."""
    if changed:
        return f"another{number}x{place}name", f"Another{number}x{place}value"
    return f"zqname{number}x{place}qz", f"zqvalue{number}x{place}qz"


def _shape(messages: list[Message], context: dict[str, Any]) -> str:
    """What decides which messages a template reads, but for the texts themselves."""
    turns = [
        (message.get("role"), bool(_text_of(message)), _count(message.get("tool_calls")), sorted(message))
        for message in messages
    ]
    variables = {name: value for name, value in context.items() if name != "tools"}
    return json.dumps([turns, variables, context.get("tools") is not None], sort_keys=True, default=str)


def _count(calls: Any) -> int:
    return len(calls) if isinstance(calls, list) else 0


_REMEDIES = {
    ("system", "developer"): "Send it as the first message, or as a user message",
    ("tool", "function"): "Send the result as a user message",
    ("user", "assistant"): "Another template can be given with --chat_template FILE",
}
_OTHER_ROLE = "Roles are system, user, assistant and tool"


def _explained(message: Message, loss: _Loss) -> str:
    role = str(message.get("role"))[:64]
    if loss.place != _TEXT:
        return (
            f"messages.{loss.index}.tool_calls.{loss.place}: the model's chat template leaves this tool call out, so the model "
            "would never see it. Send it in a message of its own, or as text"
        )
    remedy = next((remedy for roles, remedy in _REMEDIES.items() if role in roles), _OTHER_ROLE)
    return (
        f"messages.{loss.index}: the model's chat template leaves out a message of role {role!r} in this place, so the model "
        f"would never see it. {remedy}"
    )

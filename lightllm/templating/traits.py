"""What a chat template reads, found by rendering small conversations with it.

Published templates differ in what they expect of a message with tool calls. DeepSeek V3 prints calls only where the content
is null, gpt-oss wants an empty string there; DeepSeek V3.1 joins the arguments as text, Llama 3.1 and Seed-OSS read them as an
object. Nothing in a model folder says so.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.templating.template import Message, Template

_KEY, _VALUE, _NAME, _TEXT = "zqkey", "zqvalue", "zqfunction", "zqtext"
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "Says something",
            "parameters": {
                "type": "object",
                "properties": {"what": {"type": "string", "description": "What"}},
            },
        },
    }
]
_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_MAX_CHARACTERS = 1024 * 1024
_USER: Message = {"role": "user", "content": "Hello"}
_SYSTEM: Message = {"role": "system", "content": "Be brief"}
_ANSWER: Message = {"role": "assistant", "content": "Done"}
_RESULT: Message = {"role": "tool", "tool_call_id": "call00001", "name": _NAME, "content": "Result"}


@dataclasses.dataclass(frozen=True)
class Traits:
    """The form of messages that one template renders whole."""

    null_content: bool = False
    """Of a message that holds nothing but calls: null instead of an empty string."""
    text_arguments: bool = False
    """A call's arguments are JSON text instead of an object."""
    calls_apart: bool = False
    """Calls are left out beside a text, so they become a message of their own behind it."""
    typed_content: bool = False
    """A content is a list of parts instead of a string."""
    parts: bool = False
    """A content may be a list of parts; what is no text has a place in it."""
    tools: bool = True
    """Tools are rendered."""


def find_traits(template: Template) -> Traits:
    """A conversation that the template refuses tells nothing; what nothing is told about stays at its default."""
    typed = _shown(template, [[_USER | {"content": _TEXT}]], _TEXT) is False and bool(
        _shown(template, [[_USER | {"content": parts(_TEXT)}]], _TEXT)
    )
    traits = Traits(typed_content=typed, parts=typed or _reads_parts(template))
    forms = [
        dataclasses.replace(traits, null_content=null, text_arguments=text)
        for null, text in itertools.product((False, True), (False, True))
    ]
    best = max(forms, key=lambda form: _quality(template, form))  # of equal ones the first
    if _quality(template, best):
        beside = _conversations([_call(best) | {"content": content(_TEXT, best)}], best)
        apart = _conversations([_ANSWER | {"content": content(_TEXT, best)}, _call(best)], best)
        lost = _shown(template, beside, _VALUE) is False
        best = dataclasses.replace(best, calls_apart=lost and bool(_shown(template, apart, _VALUE, _TEXT)))
    opening = [_typed([_USER], best), _typed([_SYSTEM, _USER], best)]
    return dataclasses.replace(best, tools=_shown(template, opening, _NAME, tools=_TOOLS) is not False)


def parts(text: str) -> list[dict[str, str]]:
    """A text as typed content."""
    return [{"type": "text", "text": text}]


def _reads_parts(template: Template) -> bool:
    """Whether it reads the texts of a list; a template for strings may print the whole list as Python or JSON writes it."""
    message = _USER | {"content": [*parts(_TEXT), *parts(_VALUE)]}
    text = _try(template, [message], None)
    printed = ("'type': 'text'", '"type": "text"', '"type":"text"')
    return text is not None and _TEXT in text and _VALUE in text and not any(form in text for form in printed)


def content(text: str, traits: Traits) -> Any:
    return parts(text) if traits.typed_content else text


def _quality(template: Template, form: Traits) -> int:
    """How well a call's arguments are rendered: 0 not at all, 1 escaped, 2 as Python writes an object, 3 well."""
    best = 0
    for messages, tools in itertools.product(_conversations([_call(form)], form), (None, _TOOLS)):
        text = _try(template, messages, tools)
        if text is None or _KEY not in text or _VALUE not in text:
            continue
        escaped, python = f'\\"{_KEY}' in text, f"'{_KEY}'" in text
        best = max(best, 1 if escaped else 2 if python else 3)
    return best


def _call(form: Traits) -> Message:
    arguments: Any = f'{{"{_KEY}": "{_VALUE}"}}' if form.text_arguments else {_KEY: _VALUE}
    call = {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return {"role": "assistant", "content": None if form.null_content else "", "tool_calls": [call]}


def _conversations(middle: list[Message], form: Traits) -> list[list[Message]]:
    begun = [_USER, *middle, _RESULT]
    return [_typed(begun, form), _typed([*begun, _ANSWER, _USER], form)]


def _typed(messages: list[Message], form: Traits) -> list[Message]:
    return [
        message | {"content": content(message["content"], form)}
        if isinstance(message["content"], str) and "tool_calls" not in message
        else message
        for message in messages
    ]


def _shown(
    template: Template, conversations: list[list[Message]], *words: str, tools: list[Any] | None = None
) -> bool | None:
    """Whether one of the conversations is rendered with all words; None if all are refused."""
    texts = [text for messages in conversations if (text := _try(template, messages, tools)) is not None]
    return any(all(word in text for word in words) for text in texts) if texts else None


def _try(template: Template, messages: list[Message], tools: list[Any] | None) -> str | None:
    try:
        context = {**_TOKENS, "tools": tools, "documents": None, "add_generation_prompt": True}
        return template.render(messages, context, _MAX_CHARACTERS)
    except InvalidParameter:
        return None

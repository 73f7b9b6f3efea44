"""One compiled chat template. Runs in a child process: compiling and rendering may loop or take any amount of memory."""

from __future__ import annotations

from typing import Any

import jinja2
import jinja2.nodes

from lightllm.errors import InvalidParameter
from lightllm.templating.environment import make_environment
from lightllm.templating.limits import MAX_RENDERED_CHARACTERS

MAX_ERROR_CHARACTERS = 300
_OPEN_END = "zqOPENENDqz "
"""Marks where the last message ends, so that what a template puts behind it can be cut off."""

Message = dict[str, Any]


class Template:
    """Raises `InvalidParameter` with the line for a template with a syntax error."""

    def __init__(self, source: str) -> None:
        try:
            environment = make_environment()
            self._template = environment.from_string(source)
            names = environment.parse(source).find_all(jinja2.nodes.Name)
            self.names = frozenset(node.name for node in names)
            """Every variable that it mentions."""
        except jinja2.TemplateSyntaxError as error:
            raise InvalidParameter(
                f"the chat template has a syntax error in line {error.lineno}: {error.message}",
                param="messages",
            ) from error
        except (jinja2.TemplateError, RecursionError, OverflowError) as error:
            raise InvalidParameter(
                f"the chat template cannot be compiled: {safe(error)}", param="messages"
            ) from error

    def render(
        self, messages: list[Message], context: dict[str, Any], max_characters: int = MAX_RENDERED_CHARACTERS
    ) -> str:
        """The whole text. Raises `InvalidParameter` with the template's own words if it refuses."""
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate({**context, "messages": messages}):
                size += len(part)
                if size > max_characters:
                    raise InvalidParameter(
                        f"the chat template produced more than {max_characters} characters", param="messages"
                    )
                parts.append(part)
        except (InvalidParameter, MemoryError):
            raise
        except Exception as error:  # a template can raise anything, and the request is to blame
            raise InvalidParameter(
                f"the chat template refused the messages: {safe(error)}", param="messages"
            ) from error
        return "".join(parts)

    def render_open(self, messages: list[Message], context: dict[str, Any]) -> str:
        """The text up to the end of the last message's content, as transformers' `continue_final_message` has it."""
        *before, last = messages
        content = last.get("content")
        if isinstance(content, str) and content.strip():
            marked: Any = content + _OPEN_END
            wanted = content.strip()
        elif isinstance(content, list) and content and isinstance(content[-1].get("text"), str):
            wanted = content[-1]["text"].strip()
            marked = [*content[:-1], {**content[-1], "text": content[-1]["text"] + _OPEN_END}]
        else:
            raise InvalidParameter(
                "continue_final_message: the last message has no text to continue", param="messages"
            )
        text = self.render([*before, {**last, "content": marked}], context)
        end = text.rfind(_OPEN_END.strip())
        if end < 0 or wanted not in text:
            raise InvalidParameter(
                "continue_final_message: the chat template changes or leaves out the text of the last message",
                param="messages",
            )
        return text[:end] if text.startswith(_OPEN_END, end) else text[:end].rstrip()


def safe(error: BaseException) -> str:
    """One short line without anything but the error's own words."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message[:MAX_ERROR_CHARACTERS]

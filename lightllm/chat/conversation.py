"""The messages so far, as the OpenAI API has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidParameter

Message = dict[str, Any]
Content = str | list[dict[str, Any]]
"""A text, or parts where a message holds images."""

MAX_FILE_BYTES = 64 * 2**20
_ROLES = ("system", "user", "assistant")


class Conversation:
    def __init__(self, system: str | None = None) -> None:
        """system: a message that stays in front through every reset."""
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._system)

    def ask(self, content: Content) -> None:
        self.messages.append({"role": "user", "content": content})

    def answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """The last message: it got no answer."""
        self.messages.pop()

    def reset(self) -> None:
        self.messages = list(self._system)

    def remove(self) -> bool:
        """The last question with its answer; whether there was one."""
        asked = [index for index, message in enumerate(self.messages) if message["role"] == "user"]
        if asked:
            del self.messages[asked[-1] :]
        return bool(asked)

    def drop_answer(self) -> Message | None:
        """The last answer to a question, so that there can be another one; None: there is none."""
        roles = [message["role"] for message in self.messages[-2:]]
        return self.messages.pop() if roles == ["user", "assistant"] else None

    def save(self, path: Path) -> None:
        """Raises `OSError`."""
        text = json.dumps({"messages": self.messages}, ensure_ascii=False, indent=1)
        path.expanduser().write_text(text + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """In place of what is. Raises `OSError`, and `InvalidParameter` for a file that holds no conversation."""
        path = path.expanduser()
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InvalidParameter(f"{path} has {size} bytes, at most {MAX_FILE_BYTES}")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidParameter(f"{path} is no JSON: {error}") from error
        messages = data.get("messages") if isinstance(data, dict) else data
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise InvalidParameter(f"{path} holds no list of messages, each with role and content")
        self.messages = messages


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in _ROLES
        and isinstance(value.get("content"), str | list)
    )

"""Chat templates: where they are found, and how a conversation is rendered with one.

The model's templates are Jinja written for transformers, so they get the environment that transformers gives them
(its documentation: "Writing a chat template"). They are programs of the model folder, so they run in a child process
with limits (`lightllm/templating`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidOption, InvalidParameter, ServerStopping
from lightllm.model_folder.chat_templates import find_chat_templates, read_template
from lightllm.templating.limits import MAX_CONVERSATION_BYTES, MAX_TEMPLATE_CHARACTERS, Limits
from lightllm.templating.process import TemplateFailure, TemplateProcess, TemplateProcesses

_RESERVED = ("messages", "tools", "add_generation_prompt")
_SWITCHES = frozenset({"thinking", "enable_thinking"})
"""Two names for one thing: a request sets both."""
_MAX_NOTED = 64
"""Names of variables that are logged because the template does not read them."""


class ChatTemplates:
    """The templates of one model by name; `default`, and often `tool_use`. Safe to use from several threads."""

    def __init__(self, sources: dict[str, str], limits: Limits | None = None) -> None:
        self._sources = sources
        self.processes = TemplateProcesses(limits)
        self._broken: dict[str, str] = {}
        self._noted: set[str] = set()
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self._sources)

    def source(self, name: str = "default") -> str | None:
        """The text of a template; None: there is none of that name."""
        return self._sources.get(name)

    @property
    def sources(self) -> list[str]:
        return list(self._sources.values())

    def check(self) -> dict[str, str]:
        """Compiles all, and tries what they read. Returns what is wrong with those that cannot be used, by name, which is
        an error of each request that needs them, and logged once."""
        for name in self._sources:
            with self.processes.one() as process, contextlib.suppress(TemplateFailure):
                self._load(
                    process, name
                )  # with a child that was killed the first conversation tries it again
        return dict(self._broken)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: dict[str, Any],
        continue_final_message: bool = False,
        must_read: Sequence[str] = (),
        image_marker: str | None = None,
    ) -> str:
        """image_marker: what stands for an image where the template reads texts only; None: an image is refused there. Raises `InvalidParameter` with a message for the client: also for what the template would leave out, and for one of the
        variables in `must_read` that it does not read."""
        if continue_final_message and add_generation_prompt:
            raise InvalidParameter(
                "continue_final_message leaves the last message open, so add_generation_prompt must not be true",
                param="continue_final_message",
            )
        name = self._choose(tools)
        try:
            task = self.processes.task(
                task="render",
                name=name,
                messages=messages,
                tools=tools or None,
                open_answer=add_generation_prompt,
                continued=continue_final_message,
                variables={"documents": None} | {k: v for k, v in variables.items() if k not in _RESERVED},
                must_read=list(must_read),
                image_marker=image_marker,
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidParameter(f"messages must be plain JSON data: {error}", param="messages") from error
        if len(task) > MAX_CONVERSATION_BYTES:
            raise InvalidParameter(
                f"the conversation has {len(task)} bytes, at most {MAX_CONVERSATION_BYTES}", param="messages"
            )
        answer = self._ask(name, task)
        if "error" in answer:
            raise InvalidParameter(answer["error"], param=answer["param"])
        self._note_unread(answer["unread"], variables)
        text: str = answer["text"]
        return text

    def close(self) -> None:
        self.processes.close()

    def _ask(self, name: str, task: bytes) -> dict[str, Any]:
        closings = self.processes.closings
        for last in (False, True):
            self._refuse_broken(name)
            with self.processes.one() as process:
                try:
                    self._load(process, name)
                    self._refuse_broken(name)
                    return process.ask(task)
                except TemplateFailure as failure:
                    if self.processes.closings != closings:
                        raise ServerStopping("the server is shutting down", retry_after=5) from failure
                    if failure.repeatable or last:
                        raise InvalidParameter(
                            f"the chat template {failure.reason} for these messages", param="messages"
                        ) from failure
        raise AssertionError("the second try ends in an answer or an error")

    def _load(self, process: TemplateProcess, name: str) -> None:
        """Gives a child the template, unless it has it or it cannot be used. Raises `TemplateFailure` if the child died."""
        if name in process.loaded or name in self._broken:
            return
        source = self._sources[name]
        try:
            if len(source) > MAX_TEMPLATE_CHARACTERS:
                raise InvalidParameter(
                    f"the chat template has {len(source)} characters, at most {MAX_TEMPLATE_CHARACTERS}"
                )
            answer = process.ask(self.processes.task(task="load", name=name, source=source))
            if "error" in answer:
                raise InvalidParameter(answer["error"])
            process.loaded.add(name)
        except TemplateFailure as failure:
            if not failure.repeatable:
                raise
            self._set_broken(name, f"the chat template {failure.reason} when it was tried")
        except InvalidParameter as error:
            self._set_broken(name, error.message)

    def _refuse_broken(self, name: str) -> None:
        if name in self._broken:
            raise InvalidParameter(self._broken[name], param="messages")

    def _set_broken(self, name: str, reason: str) -> None:
        with self._lock:
            if name not in self._broken:
                logging.getLogger(__name__).warning("chat template %r cannot be used: %s", name, reason)
                self._broken[name] = reason

    def _note_unread(self, unread: list[str], variables: dict[str, Any]) -> None:
        """Into the log, once: what a client set for the template, and the template does not know."""
        if any(name in variables and name not in unread for name in _SWITCHES):  # and means the other too
            unread = [name for name in unread if name not in _SWITCHES]
        for name in unread:
            if name in variables and not name.endswith("_token"):
                with self._lock:
                    new = name not in self._noted and len(self._noted) < _MAX_NOTED
                    self._noted.add(name) if new else None
                if new:
                    logging.getLogger(__name__).warning(
                        "the chat template does not read %.64r, which a request sets for it", name
                    )

    def _choose(self, tools: list[dict[str, Any]] | None) -> str:
        for name in ("tool_use", "default") if tools else ("default",):
            if name in self._sources:
                return name
        if self:
            raise InvalidParameter(
                f"the model has chat templates {sorted(self._sources)} but none named default; "
                "the server can be given one with --chat_template",
                param="messages",
            )
        raise InvalidParameter(
            "the model has no chat template, so it cannot chat; use /v1/completions or /generate, "
            "or start the server with --chat_template FILE",
            param="messages",
        )


def read_chat_templates(model_dir: Path, override: str | None, limits: Limits | None = None) -> ChatTemplates:
    """`override` (a file, or the template itself), else those of the model folder."""
    if override is not None:
        templates = ChatTemplates({"default": _override_source(override)}, limits)
        if broken := templates.check():
            templates.close()
            raise InvalidOption(f"--chat_template: {broken['default']}.", "Correct the template.")
        return templates
    return ChatTemplates(find_chat_templates(model_dir), limits)


def _override_source(override: str) -> str:
    if "{{" in override or "{%" in override or "\n" in override:
        return override
    path = Path(override).expanduser()
    if not path.is_file():
        raise InvalidOption(
            f"--chat_template {override} is neither a file nor a template.",
            "Give the path of a Jinja file, or the template itself.",
        )
    return read_template(path)

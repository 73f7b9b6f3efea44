"""Chat templates: where they are found, and how a conversation is rendered with one.

The model's templates are Jinja written for transformers, so they get the environment that transformers gives them
(its documentation: "Writing a chat template").
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightllm.errors import InvalidModel, InvalidOption, InvalidParameter
from lightllm.tokenizer.json_files import read_json_object

if TYPE_CHECKING:
    from jinja2 import Template

MAX_RENDERED_CHARACTERS = 64 * 1024 * 1024
"""A conversation that renders to more than this is refused."""
MAX_ERROR_CHARACTERS = 300
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_RESERVED = ("messages", "tools", "add_generation_prompt")

_CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Of Qwen 1, whose files name the format ("chat_format": "chatml") and hold no template."""


class ChatTemplates:
    """The templates of one model by name; `default`, and often `tool_use`."""

    def __init__(self, sources: dict[str, str]) -> None:
        """Compiles them; one with a syntax error is remembered, and rendering it is an error of the request."""
        self._templates: dict[str, Template] = {}
        self._broken: dict[str, str] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = compile_template(source)
            except InvalidParameter as error:
                self._broken[name] = error.message
                logging.getLogger(__name__).warning("chat template %r cannot be used: %s", name, error)

    def __bool__(self) -> bool:
        return bool(self._templates or self._broken)

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> str:
        """Raises `InvalidParameter` with a message for the client."""
        template = self._choose(tools)
        values = {key: value for key, value in variables.items() if key not in _RESERVED}
        return _render(
            template,
            {
                "messages": [_with_reasoning(message) for message in messages],
                "tools": tools,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
                **values,
            },
        )

    def _choose(self, tools: list[dict[str, Any]] | None) -> Template:
        names = ["tool_use", "default"] if tools is not None else ["default"]
        for name in names:
            if name in self._broken:
                raise InvalidParameter(self._broken[name], param="messages")
            if name in self._templates:
                return self._templates[name]
        if self:
            raise InvalidParameter(
                f"the model has chat templates {sorted(self._templates)} but none named default; "
                "the server can be given one with --chat_template",
                param="messages",
            )
        raise InvalidParameter(
            "the model has no chat template, so it cannot chat; use /v1/completions or /generate, "
            "or start the server with --chat_template FILE",
            param="messages",
        )


def read_chat_templates(model_dir: Path, override: str | None) -> ChatTemplates:
    """`override` (file or template) first, then the `.jinja` files, then what the JSON files hold."""
    if override is not None:
        source = _override_source(override)
        try:
            compile_template(source)
        except InvalidParameter as error:
            raise InvalidOption(f"--chat_template: {error.message}.", "Correct the template.") from error
        return ChatTemplates({"default": source})
    sources: dict[str, str] = {}
    for file in sorted((model_dir / "additional_chat_templates").glob("*.jinja")):
        sources[file.stem] = _read_text(file)
    if (model_dir / "chat_template.jinja").is_file():
        sources["default"] = _read_text(model_dir / "chat_template.jinja")
    if sources:
        return ChatTemplates(sources)
    for file_name in ("tokenizer_config.json", "chat_template.json"):
        sources = _json_sources(model_dir / file_name)
        if sources:
            break
    if not sources and read_json_object(model_dir / "generation_config.json").get("chat_format") == "chatml":
        sources = {"default": _CHATML}
    return ChatTemplates(sources)


def compile_template(source: str) -> Template:
    """Raises `InvalidParameter` with the line for a template with a syntax error."""
    import jinja2

    from lightllm.tokenizer.jinja_environment import make_environment

    try:
        return make_environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidParameter(
            f"the chat template has a syntax error in line {error.lineno}: {error.message}", param="messages"
        ) from error
    except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
        raise InvalidParameter(
            f"the chat template cannot be compiled: {_safe(error)}", param="messages"
        ) from error


def _render(template: Template, variables: dict[str, Any]) -> str:
    parts: list[str] = []
    size = 0
    try:
        for part in template.generate(variables):
            size += len(part)
            if size > MAX_RENDERED_CHARACTERS:
                raise InvalidParameter(
                    f"the chat template produced more than {MAX_RENDERED_CHARACTERS} characters",
                    param="messages",
                )
            parts.append(part)
    except InvalidParameter:
        raise
    except Exception as error:  # a template is a program: it can raise anything, and the request is to blame
        raise InvalidParameter(
            f"the chat template refused the messages: {_safe(error)}", param="messages"
        ) from error
    return "".join(parts)


def _safe(error: BaseException) -> str:
    """One short line without anything but the error's own words."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message[:MAX_ERROR_CHARACTERS]


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning goes by several names; templates find it under the standard one, and gpt-oss under `thinking`."""
    if not isinstance(message, dict):
        raise InvalidParameter(f"a message must be an object, got {type(message).__name__}", param="messages")
    for name in _REASONING_FIELDS:
        reasoning = message.get(name)
        if reasoning is not None:
            return {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def _override_source(override: str) -> str:
    if "{{" in override or "{%" in override or "\n" in override:
        return override
    path = Path(override).expanduser()
    if not path.is_file():
        raise InvalidOption(
            f"--chat_template {override} is neither a file nor a template.",
            "Give the path of a Jinja file, or the template itself.",
        )
    return _read_text(path)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModel(f"{path} cannot be read ({error}).", "Correct the file.") from error


def _json_sources(path: Path) -> dict[str, str]:
    value = read_json_object(path).get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        return {name: source for name, source in value.items() if isinstance(source, str)}
    sources: dict[str, str] = {}
    for entry in value if isinstance(value, list) else []:
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("name"), str)
            and isinstance(entry.get("template"), str)
        ):
            sources[entry["name"]] = entry["template"]
    return sources

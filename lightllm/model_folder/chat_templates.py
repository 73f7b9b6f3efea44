"""Which chat template of a model folder counts: the `.jinja` files, else what the JSON files hold."""

from __future__ import annotations

from pathlib import Path

from lightllm.errors import InvalidModel
from lightllm.model_folder.json_files import read_json_object

_CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Of Qwen 1, whose files name the format ("chat_format": "chatml") and hold no template."""


def find_chat_templates(folder: Path) -> dict[str, str]:
    """Name -> source of the templates that count; `default`, and often `tool_use`. Raises `InvalidModel` for what is no text."""
    files = _template_files(folder)
    if files:
        return {name: read_template(path) for name, path in files.items()}
    for file_name in ("tokenizer_config.json", "chat_template.json"):
        if sources := _json_sources(folder / file_name):
            return sources
    if read_json_object(folder / "generation_config.json").get("chat_format") == "chatml":
        return {"default": _CHATML}
    return {}


def overruled_templates(folder: Path) -> list[str]:
    """A line if the files that count say something else than tokenizer_config.json."""
    files = sorted(_template_files(folder).values(), key=lambda path: path.name != "chat_template.jinja")
    inside = read_json_object(folder / "tokenizer_config.json").get("chat_template")
    same = inside.encode() if isinstance(inside, str) else None
    if not files or inside is None or any(path.read_bytes() == same for path in files):
        return []
    return [f"{files[0].name} is taken, chat_template of tokenizer_config.json is not."]


def read_template(path: Path) -> str:
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


def _template_files(folder: Path) -> dict[str, Path]:
    """By the template's name; chat_template.jinja is the default."""
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files.pop("default", None)
        files["default"] = folder / "chat_template.jinja"
    return files

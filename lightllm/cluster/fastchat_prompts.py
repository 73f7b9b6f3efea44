"""The prompt of a chat by a conversation template of FastChat's, as its clients build it themselves.

Numbers are those of `SeparatorStyle` in fastchat.conversation 0.2.36, as published.
"""

from __future__ import annotations

from typing import Any

from lightllm.errors import InvalidParameter

_COLON, _COLON_TWO, _COLON_SPACE, _ALONE, _ALONE_TWO, _LINE, _LLAMA2, _CHATML = 1, 2, 3, 4, 5, 6, 7, 9


def text_of(content: Any) -> str:
    """Of a message. Raises `InvalidParameter`."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    if not all(isinstance(part, dict) and part.get("type", "text") == "text" for part in parts):
        raise InvalidParameter("workers of this model take texts as content", param="messages")
    return "".join(str(part.get("text", "")) for part in parts)


def prompt_of(template: dict[str, Any], messages: list[dict[str, str]]) -> str:
    """messages: `role` and `content`; the prompt ends where the answer begins. Raises `InvalidParameter`."""
    style = template.get("sep_style")
    user, assistant = (*map(str, template.get("roles") or ("user", "assistant")),)[:2]
    sep, sep2 = template.get("sep") or "", template.get("sep2") or ""
    said = "\n".join(each["content"] for each in messages if each["role"] in ("system", "developer"))
    told = said or str(template.get("system_message") or "")
    pattern = str(template.get("system_template") or "{system_message}")
    system = pattern.replace("{system_message}", told)
    turns = [
        (assistant if each["role"] == "assistant" else user, each["content"])
        for each in messages
        if each["role"] not in ("system", "developer")
    ]
    if style == _LLAMA2:
        return _llama2(system if told else "[INST] ", turns, user, assistant, sep, sep2)
    if style == _CHATML:
        head = f"{system}{sep}\n" if told else ""
        return head + "".join(f"{role}\n{text}{sep}\n" for role, text in turns) + f"{assistant}\n"
    ends = [sep, sep2] if style in (_COLON_TWO, _ALONE_TWO) else [sep, sep]
    joint = {_COLON: ": ", _COLON_TWO: ": ", _COLON_SPACE: ": ", _ALONE: "", _ALONE_TWO: "", _LINE: "\n"}.get(
        style or 0
    )
    if joint is None:
        raise InvalidParameter(
            f"the conversation {template.get('name')!r} of this model's workers has a form that is not known here: "
            "ask /v1/completions with a prompt of your own",
            param="messages",
        )
    colons = (_COLON, _COLON_TWO, _COLON_SPACE)
    head = f"{system}{sep}" if style in colons or (style == _LINE and system) else system
    body = "".join(f"{role}{joint}{text}{ends[role == assistant]}" for role, text in turns)
    end = {_COLON: ":", _COLON_TWO: ":", _COLON_SPACE: ": ", _LINE: "\n"}.get(style or 0, "")
    return f"{head}{body}{assistant}{end}"


def _llama2(system: str, turns: list[tuple[str, str]], user: str, assistant: str, sep: str, sep2: str) -> str:
    prompt = system
    for number, (role, text) in enumerate(turns):
        if number == 0:
            prompt += f"{text} "
        else:
            prompt += f"{role} {text}{sep if role == user else sep2}"
    return prompt + assistant

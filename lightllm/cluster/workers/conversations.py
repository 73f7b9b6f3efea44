"""Conversation templates as FastChat's clients want them: they build the prompt of a chat themselves.

Fields and numbers are those of `Conversation` and `SeparatorStyle` in fastchat.conversation 0.2.36, as published.
"""

from __future__ import annotations

from typing import Any

_ALONE, _LLAMA2, _CHATML = 4, 7, 9
"""`SeparatorStyle`: NO_COLON_SINGLE (role, message, separator), LLAMA2, CHATML (a line end behind the role)."""


def _conversation(
    name: str, style: int, sep: str, roles: tuple[str, str], system: str = "{system_message}", **more: Any
) -> dict[str, Any]:
    fields = {
        "name": name, "system_template": system, "system_message": "", "roles": list(roles), "messages": [], "offset": 0,
        "sep_style": style, "sep": sep, "sep2": None, "stop_str": None, "stop_token_ids": None,
    }  # fmt: skip
    return fields | more


CONVERSATIONS: dict[str, dict[str, Any]] = {
    "chatml": _conversation(
        "chatml", _CHATML, "<|im_end|>", ("<|im_start|>user", "<|im_start|>assistant"),
        "<|im_start|>system\n{system_message}", stop_str="<|im_end|>",
    ),
    "llama-3": _conversation(
        "llama-3", _ALONE, "<|eot_id|>",
        ("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        "<|start_header_id|>system<|end_header_id|>\n\n{system_message}<|eot_id|>", stop_str="<|eot_id|>",
    ),
    "llama-2": _conversation(
        "llama-2", _LLAMA2, " ", ("[INST]", "[/INST]"), "[INST] <<SYS>>\n{system_message}\n<</SYS>>\n\n", sep2=" </s><s>",
    ),
    "gemma": _conversation(
        "gemma", _ALONE, "<end_of_turn>\n", ("<start_of_turn>user\n", "<start_of_turn>model\n"), stop_str="<end_of_turn>",
    ),
    "raw": _conversation("raw", _ALONE, "", ("", "")),
}  # fmt: skip

_SIGNS = {
    "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama-3",
    "<start_of_turn>": "gemma",
    "[INST]": "llama-2",
}


def conversation_of(chat_template: str) -> str:
    """The name of the one that is most like a chat template: by the words that begin a turn."""
    return next((name for sign, name in _SIGNS.items() if sign in chat_template), "raw")

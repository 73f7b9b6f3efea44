"""Images of a conversation stand in the prompt where the published templates of models that see put them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from support.chat_templates import GEMMA_3, LLAVA_HF, QWEN_2_VL

from lightllm.errors import InvalidParameter
from lightllm.images.layouts.qwen2_vl import MARKER
from lightllm.tokenizer.chat_template import ChatTemplates

IMAGE = {"type": "image"}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What is"}, IMAGE, {"type": "text", "text": "this?"}]},
    {"role": "assistant", "content": "A fox."},
    {"role": "user", "content": [IMAGE, IMAGE, {"type": "text", "text": "And these?"}]},
    {"role": "assistant", "content": "Dogs."},
    {"role": "user", "content": "Sure?"},
]  # fmt: skip


@functools.cache
def templates(source: str) -> ChatTemplates:
    return ChatTemplates({"default": source})


def render(source: str, messages: list[dict[str, Any]], marker: str, **variables: Any) -> str:
    tokens = {"bos_token": "<bos>", "eos_token": "</s>", **variables}
    return templates(source).render(messages, None, True, tokens, image_marker=marker)


def test_qwen2_vl_has_parts_in_their_order_and_numbers_pictures_when_asked() -> None:
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is{0}this?<|im_end|>\n<|im_start|>assistant\nA fox."
        "<|im_end|>\n<|im_start|>user\n{1}{2}And these?<|im_end|>\n<|im_start|>assistant\nDogs.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(QWEN_2_VL, CONVERSATION, MARKER) == text.format(MARKER, MARKER, MARKER)
    numbered = [f"Picture {number}: {MARKER}" for number in (1, 2, 3)]
    assert render(QWEN_2_VL, CONVERSATION, MARKER, add_vision_id=True) == text.format(*numbered)


def test_gemma_3_has_parts_in_their_order() -> None:
    image = "<start_of_image>"
    assert render(GEMMA_3, CONVERSATION, image) == (
        f"<bos><start_of_turn>user\nBe brief.\n\nWhat is{image}this?<end_of_turn>\n<start_of_turn>model\nA fox.<end_of_turn>\n"
        f"<start_of_turn>user\n{image}{image}And these?<end_of_turn>\n<start_of_turn>model\nDogs.<end_of_turn>\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_llava_has_the_images_of_a_message_before_its_texts() -> None:
    assert render(LLAVA_HF, CONVERSATION[1:], "<image>") == (
        "USER: <image>\nWhat is this? ASSISTANT: A fox. USER: <image>\n<image>\nAnd these? ASSISTANT: Dogs. USER: Sure? ASSISTANT:"
    )


def test_a_conversation_whose_roles_a_template_refuses_is_refused_with_images_too() -> None:
    with pytest.raises(InvalidParameter, match="alternate"):
        render(GEMMA_3, [CONVERSATION[2], CONVERSATION[3]], "<start_of_image>")

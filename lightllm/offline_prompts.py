"""What callers of the offline `LLM` give as prompts, in the forms that vLLM's has: texts, token ids, messages, with images.

    "text"   [1, 2, 3]
    {"prompt": "text <image>", "multi_modal_data": {"image": IMAGE or [IMAGE, ...]}}, or "prompt_token_ids" instead of "prompt"
    [{"role": "user", "content": [{"type": "text", "text": "..."}, {"type": "image", "image": IMAGE}]}]

IMAGE: a Pillow image, bytes, a path or a URL (`images.objects`). In a message it is a part {"type": "image", "image": IMAGE},
{"type": "image_pil", "image_pil": IMAGE}, or OpenAI's {"type": "image_url", "image_url": {"url": URL}}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from lightllm.errors import InvalidParameter
from lightllm.images.layouts.layout import Layout
from lightllm.images.objects import image_of
from lightllm.images.prompt import MarkedPrompt
from lightllm.images.prompt import encode as encode_markers
from lightllm.images.source import ImageSource, openai_source
from lightllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lightllm.images.counted import CountedImages

Prompt = str | list[int] | dict[str, Any]
Message = dict[str, Any]

_FIELDS = ("prompt", "prompt_token_ids", "multi_modal_data")
_PARTS = {"image": "image", "image_pil": "image_pil", "image_url": "image_url", "input_image": "image_url"}
"""Type of an image's part in a message -> the field with the image."""


@dataclasses.dataclass(frozen=True)
class AskedPrompt:
    text: str | None
    """None: it came as token ids, or as messages."""
    marked: MarkedPrompt
    images: CountedImages | None = None
    """When they are loaded; None: it has none."""

    @property
    def tokens(self) -> int:
        """With those of its images."""
        return len(self.marked.ids) + (self.images.extra if self.images else 0)

    @property
    def text_ids(self) -> list[int]:
        """Its token ids but for those of images."""
        return self.images.text_ids if self.images else list(self.marked.ids)


class PromptReader:
    def __init__(self, tokenizer: Tokenizer, vocab_size: int, layout: Layout | None) -> None:
        """layout: None: the model takes no images."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._layout = layout

    def read(self, prompt: Prompt, field: str = "prompt") -> AskedPrompt:
        """Raises `InvalidParameter`."""
        if not isinstance(prompt, dict):
            return self._read(prompt, [], field)
        for name in prompt:
            if name not in _FIELDS:
                raise InvalidParameter(f"{field} has no field {name!r}, only {', '.join(_FIELDS)}", field)
        given = [prompt[name] for name in _FIELDS[:2] if prompt.get(name) is not None]
        if len(given) != 1:
            raise InvalidParameter(f"{field} must have either prompt or prompt_token_ids", field)
        field = f"{field}.multi_modal_data"
        return self._read(given[0], self._sources(prompt.get("multi_modal_data"), field), field)

    def read_chat(self, messages: list[Message], field: str = "messages", **template: Any) -> AskedPrompt:
        """template: what `Tokenizer.apply_chat_template` takes. Raises `InvalidParameter`."""
        sources: list[ImageSource] = []
        plain = [
            self._without_images(message, f"{field}.{index}", sources)
            for index, message in enumerate(messages)
        ]
        marker = self._layout.marker if self._layout else None
        text = self._tokenizer.apply_chat_template(plain, image_marker=marker, **template)
        ids = self._encode(text, add_special_tokens=False)
        return AskedPrompt(None, MarkedPrompt(ids, sources, field))

    def _read(self, prompt: Any, sources: list[ImageSource], field: str) -> AskedPrompt:
        if isinstance(prompt, str):
            return AskedPrompt(prompt, MarkedPrompt(self._encode(prompt), sources, field))
        return AskedPrompt(None, MarkedPrompt(self._checked(prompt), sources, field))

    def _encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        if self._layout is None:
            return self._tokenizer.encode(text, add_special_tokens)
        return encode_markers(text, self._layout, self._tokenizer.encode, add_special_tokens)

    def _checked(self, prompt: Any) -> list[int]:
        try:
            ids = msgspec.convert(_with_plain_integers(prompt), list[int])
        except msgspec.ValidationError as error:
            raise InvalidParameter(
                f"a prompt must be a text or a list of token ids: {error}", "prompt"
            ) from error
        marker = self._layout.placeholder if self._layout and self._layout.begin is None else None
        for token_id in ids:
            if not 0 <= token_id < self._vocab_size and token_id != marker:
                raise InvalidParameter(
                    f"prompt token id {token_id} is not in [0, {self._vocab_size})", "prompt"
                )
        return ids

    # -- images

    def _sources(self, data: Any, field: str) -> list[ImageSource]:
        if data is None:
            return []
        if not isinstance(data, Mapping) or data.keys() - {"image"}:
            raise InvalidParameter(f'{field} must read {{"image": ...}}, got {_shown(data)}', field)
        images = data.get("image")
        if images is None:
            return []
        images = list(images) if isinstance(images, list | tuple) else [images]
        if images:
            self._refuse_if_blind(field)
        return [image_of(image, f"{field}.image.{index}") for index, image in enumerate(images)]

    def _without_images(self, message: Message, field: str, sources: list[ImageSource]) -> Message:
        """The message as templates take it; its images come to the others."""
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return message
        parts = []
        for index, part in enumerate(content):
            if (source := self._source(part, f"{field}.content.{index}")) is not None:
                sources.append(source)
                part = {"type": "image"}
            parts.append(part)
        return {**message, "content": parts}

    def _source(self, part: Any, field: str) -> ImageSource | None:
        """None: the part is no image."""
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _PARTS:
            return None
        self._refuse_if_blind(field)
        image = part.get(_PARTS[kind])
        if image is None:
            raise InvalidParameter(f"{field}: a {kind} part has no {_PARTS[kind]}", field)
        return openai_source(image, field) if isinstance(image, dict) else image_of(image, field)

    def _refuse_if_blind(self, field: str) -> None:
        if self._layout is None:
            raise InvalidParameter(f"{field}: this model takes no images", field)


def prompts_of(given: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: a list of integers is one. Raises `InvalidParameter` for what is neither."""
    if not isinstance(given, str | Sequence | dict):
        raise InvalidParameter(
            f"prompts must be texts, lists of token ids or dicts, got {type(given).__name__}", "prompt"
        )
    if isinstance(given, str | dict) or (len(given) > 0 and isinstance(given[0], int)):
        return [cast(Prompt, given)]
    return list(cast(Sequence[Prompt], given))


def _with_plain_integers(prompt: Any) -> Any:
    """Token ids as tokenizers of other libraries give them, numpy's integers too."""
    if not isinstance(prompt, Sequence | np.ndarray):
        return prompt
    return [int(token_id) if isinstance(token_id, np.integer) else token_id for token_id in prompt]


def _shown(data: Any) -> str:
    """Its keys, as far as it has any."""
    return f"{', '.join(map(str, data))}" if isinstance(data, Mapping) else type(data).__name__

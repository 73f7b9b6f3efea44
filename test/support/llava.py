"""A small random LLaVA in transformers' format that a server can serve: tokenizer, chat template and image processor beside it."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from support.checkpoints import write_tokenizer
from support.vision_language import FAMILIES, IMAGE_ID, Image, VisionLanguage, make_vision_language

MARKER = "<image>"
SIDE = FAMILIES["llava"]["vision_config"]["image_size"]
IMAGE_TOKENS = (SIDE // FAMILIES["llava"]["vision_config"]["patch_size"]) ** 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Llava:
    path: Path
    reference: VisionLanguage
    processor: Any

    def seen(self, file: bytes) -> Image:
        """An image of a file as the reference takes it."""
        with Pillow.open(io.BytesIO(file)) as image:
            pixels = self.processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            embedding = self.reference.model.get_image_features(pixel_values=pixels).pooler_output[0]
        return Image(0, pixels, None, embedding)


def make_llava(path: Path) -> Llava:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    reference = make_vision_language(path, "llava")
    write_tokenizer(path, IMAGE_ID)
    _edit(path / "tokenizer.json", lambda content: content["added_tokens"].append(_special_token()))
    _edit(
        path / "tokenizer_config.json", lambda settings: settings.__setitem__("chat_template", CHAT_TEMPLATE)
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(path)
    return Llava(path, reference, processor)


def picture(seed: int, width: int = 40, height: int = 30) -> bytes:
    """A PNG file."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(small).resize((width, height)).save(file, "PNG")
    return file.getvalue()


def base64_text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def data_url(file: bytes) -> str:
    return "data:image/png;base64," + base64_text(file)


def _special_token() -> dict[str, Any]:
    return {"id": IMAGE_ID, "content": MARKER, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}  # fmt: skip


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))

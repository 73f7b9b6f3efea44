"""How the prompts of a family write an image, and small tokenizers that have its special tokens.

What stands around an image's tokens is taken from the descriptions of the models, not from the layouts that are tested with it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tokenizers import AddedToken
from tokenizers import Tokenizer as LibraryTokenizer

from lightllm.tokenizer import Tokenizer
from support.checkpoints import write_tokenizer
from support.tokenizers import qwen_tiktoken, sentencepiece_model

ROLES = ("<|im_start|>", "<|im_end|>")
_CUT = "\0"


@dataclasses.dataclass(frozen=True)
class Writing:
    marker: str
    """What a client writes for an image."""
    before: str = ""
    after: str = ""
    special: tuple[str, ...] = ()
    """Tokens of the family, the one that stands for an image last; without any the prompt is cut at the markers."""
    files: str = "json"
    """Of the tokenizer: "json", "sentencepiece" or "tiktoken"."""

    def prompt(
        self, tokenizer: Tokenizer, text: str, images: Sequence[Image.Image], special: bool = True
    ) -> list[int | Image.Image]:
        """Token ids, and in the places of markers the images. special: BOS and the like are put in front."""
        first, *others = text.replace(self.marker, f"{self.before}{_CUT}{self.after}").split(_CUT)
        prompt: list[int | Image.Image] = [*tokenizer.encode(first, special)]
        for image, piece in zip(images, others, strict=True):
            prompt += [image, *tokenizer.encode(piece, False)]
        return prompt


_QWEN_2 = Writing(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|>", "<|vision_end|>",
    ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
)  # fmt: skip
_INTERNVL = Writing("<image>", "<img>", "</img>", ("<img>", "</img>", "<IMG_CONTEXT>"))
WRITINGS = {
    "llava": Writing("<image>", special=("<image>",)),
    "llava, converted": Writing("<image>", special=("<image>",)),
    "llava, original": Writing("<image>", files="sentencepiece"),
    "llava, beside clip": Writing("<image>", files="sentencepiece"),
    **dict.fromkeys(
        ("qwen2-vl", "qwen2-vl, published", "qwen2.5-vl", "qwen2.5-vl, published", "qwen3-vl"), _QWEN_2
    ),
    **dict.fromkeys(
        ("gemma3", "gemma3, published"),
        Writing("<start_of_image>", "\n\n<start_of_image>", "<end_of_image>\n\n",
                ("<start_of_image>", "<end_of_image>", "<image_soft_token>")),
    ),
    "internvl": dataclasses.replace(_INTERNVL, marker="<IMG_CONTEXT>"),
    **dict.fromkeys(("internvl, published", "internvl, phi3", "internvit-6b"), _INTERNVL),
    "internvl, internlm2": dataclasses.replace(_INTERNVL, files="sentencepiece"),
    "qwen-vl": Writing("<img></img>", "<img>", "</img>", files="tiktoken"),
}  # fmt: skip
"""Name of a checkpoint in `vision_models` -> how its prompts write an image."""


def write_vision_tokenizer(path: Path, name: str, vocab_size: int) -> int:
    """The tokenizer's files of a checkpoint. Returns the id that stands for a token of an image in transformers' model: the last
    one of the vocabulary where the tokenizer has none for it."""
    writing = WRITINGS[name]
    path.mkdir(parents=True, exist_ok=True)
    if writing.files == "tiktoken":
        qwen_tiktoken(path, chat_template=None)
        return vocab_size - 1
    added = [*ROLES, *writing.special] if writing.special else []
    if writing.files == "sentencepiece":
        first = 420
        known = {
            str(first + i): {"content": token, "special": True, "normalized": False}
            for i, token in enumerate(added)
        }
        sentencepiece_model(path, added_tokens_decoder=known)
        return first + len(added) - 1 if added else vocab_size - 1
    write_tokenizer(path, vocab_size - len(added))
    tokenizer = LibraryTokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    tokenizer.save(str(path / "tokenizer.json"))
    found = tokenizer.token_to_id(added[-1])
    assert found < vocab_size
    return found


def set_chat_template(path: Path, source: str) -> None:
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": source}))

"""Finds out which tokenizer a model folder holds, and builds it."""

from __future__ import annotations

from pathlib import Path

from lightllm.errors import InvalidModel
from lightllm.model_folder.json_files import read_json_object
from lightllm.templating.limits import Limits
from lightllm.tokenizer.backends import Backend
from lightllm.tokenizer.chat_template import ChatTemplates, read_chat_templates
from lightllm.tokenizer.json_backend import JsonBackend
from lightllm.tokenizer.sentencepiece_backend import SentencePieceBackend
from lightllm.tokenizer.special_tokens import SpecialTokens, read_special_tokens
from lightllm.tokenizer.tiktoken_backend import TiktokenBackend
from lightllm.tokenizer.tokenizer import Tokenizer
from lightllm.tokenizer.transformers_backend import TransformersBackend

_OTHER_VOCABULARIES = ("*.tiktoken", "tiktoken.model", "tekken.json")


def load_tokenizer(
    model_dir: str,
    *,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    with_chat_template: bool = True,
    template_limits: Limits | None = None,
) -> Tokenizer:
    """The tokenizer of a model folder.

    `chat_template`: a Jinja file, or the template itself, instead of the model's own. `with_chat_template=False`
    leaves templates out, for a process that only decodes. `template_limits`: what one rendering may cost. Raises
    `InvalidModel` naming the file that is missing or broken, and `InvalidOption` for a bad `chat_template`.
    """
    path = Path(model_dir)
    special = read_special_tokens(path)
    backend = _backend(path, special, trust_remote_code)
    templates = (
        read_chat_templates(path, chat_template, template_limits) if with_chat_template else ChatTemplates({})
    )
    return Tokenizer(backend, special, templates)


def _backend(path: Path, special: SpecialTokens, trust_remote_code: bool) -> Backend:
    if (path / "tokenizer.json").is_file():
        return JsonBackend(path / "tokenizer.json", special)
    if (path / "tokenizer.model").is_file():
        kind = read_json_object(path / "tokenizer_config.json").get("tokenizer_class")
        return SentencePieceBackend(path / "tokenizer.model", special, chatglm=kind == "ChatGLMTokenizer")
    if (path / "qwen.tiktoken").is_file():
        vision = "visual" in read_json_object(path / "config.json")
        return TiktokenBackend(path / "qwen.tiktoken", vision)
    if _has_own_code(path) and not trust_remote_code:
        raise InvalidModel(
            f"The tokenizer of {path} is code in the model folder.",
            "Allow it with --trust_remote_code if you trust it, or put a tokenizer.json into the folder.",
        )
    others = [file for pattern in _OTHER_VOCABULARIES for file in path.glob(pattern)]
    if others and not trust_remote_code:
        raise InvalidModel(
            f"{others[0]} is a vocabulary whose pattern and special tokens stand in no file: it cannot be read.",
            "Put a tokenizer.json into the folder (transformers writes one with save_pretrained).",
        )
    if not (path / "tokenizer_config.json").is_file() and not (path / "vocab.json").is_file():
        raise InvalidModel(
            f"{path} has no tokenizer: neither tokenizer.json nor tokenizer.model nor qwen.tiktoken.",
            "Copy the tokenizer files of the model into the folder.",
        )
    return TransformersBackend(path, trust_remote_code)


def _has_own_code(path: Path) -> bool:
    auto_map = read_json_object(path / "tokenizer_config.json").get("auto_map")
    return bool(auto_map) and (not isinstance(auto_map, dict) or "AutoTokenizer" in auto_map)

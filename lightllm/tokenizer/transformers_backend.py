"""The last resort: tokenizers that only transformers can read. Imports transformers (and with it torch) when built."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel
from lightllm.tokenizer.backends import Backend


class TransformersBackend(Backend):
    """`AutoTokenizer`; runs code from the model folder only with `trust_remote_code`."""

    def __init__(self, model_dir: Path, trust_remote_code: bool) -> None:
        logging.getLogger(__name__).info("reading the tokenizer of %s with transformers", model_dir)
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(model_dir), trust_remote_code=trust_remote_code, local_files_only=True
            )
        except Exception as error:  # whatever code of a model folder or a missing extra package raises
            first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise InvalidModel(
                f"The tokenizer of {model_dir} cannot be read: {first_line}",
                "A tokenizer.json in the folder is all that is needed; or install what is named here"
                + (
                    "." if trust_remote_code else ", or allow the folder's own code with --trust_remote_code."
                ),
            ) from error
        self.vocab_size = len(self._tokenizer)
        self.special_ids = frozenset(self._tokenizer.all_special_ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        text.encode()
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def encode_pair(self, first: str, second: str, add_special_tokens: bool) -> list[int]:
        (first + second).encode()
        return list(self._tokenizer.encode(first, second, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        token_id = self._tokenizer.convert_tokens_to_ids(token)
        unknown = token_id is None or (
            token_id == self._tokenizer.unk_token_id and token != self._tokenizer.unk_token
        )
        return None if unknown else token_id

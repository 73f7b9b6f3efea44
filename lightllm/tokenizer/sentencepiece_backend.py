"""`tokenizer.model`, read by the `sentencepiece` library (the extra package `sentencepiece`)."""

from __future__ import annotations

import re
from pathlib import Path

from lightllm.errors import InvalidModel
from lightllm.tokenizer import pieces
from lightllm.tokenizer.backends import Backend
from lightllm.tokenizer.special_tokens import SpecialTokens

_WITHOUT_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
"""Protobuf: `normalizer_spec { add_dummy_prefix: false }`; appended to a model it overrides that field alone."""


CHATGLM_TOKENS = (
    "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
)  # fmt: skip
"""Special tokens of ChatGLM2 and ChatGLM3, which stand in no file: their ids follow those of tokenizer.model."""
_CHATGLM_PREFIX = ("[gMASK]", "sop")


class SentencePieceBackend(Backend):
    """A sentencepiece model. Special and added tokens are cut out of the text before it sees the rest."""

    def __init__(self, path: Path, special: SpecialTokens, chatglm: bool = False) -> None:
        """chatglm: with the special tokens of that family, two of which stand before a text instead of BOS."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise InvalidModel(
                f"{path} needs the package sentencepiece, which is not installed.",
                "Run `pip install sentencepiece`, or put a tokenizer.json into the folder.",
            ) from error
        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise InvalidModel(
                f"{path} is not a sentencepiece model ({error}).",
                "If it is a tiktoken file, put a tokenizer.json beside it.",
            ) from error
        # After a special token no space is put before the text, as transformers does (legacy=False); ChatGLM does.
        self._inner = self._model
        if not chatglm:
            self._inner = SentencePieceProcessor(
                model_proto=self._model.serialized_model_proto() + _WITHOUT_DUMMY_PREFIX
            )
        size = self._model.get_piece_size()
        self._added = {i: token.content for i, token in special.added.items()}
        contents = {*special.named.values(), *special.extra}
        if chatglm:
            self._added |= {size + i: token for i, token in enumerate(CHATGLM_TOKENS)}
            contents |= set(CHATGLM_TOKENS)
        self._cut = {c: i for i, c in self._added.items()}
        self._cut.update({c: self._model.piece_to_id(c) for c in contents if self._is_piece(c)})
        # "sop" and "eop" are also what any text may hold.
        found = {re.escape(c) for c in self._cut} - {"sop", "eop"} if chatglm else map(re.escape, self._cut)
        patterns = sorted(found, key=len, reverse=True) + ([r"(?<=\[gMASK\])sop"] if chatglm else [])
        self._pattern = re.compile("|".join(patterns) or "(?!)")
        self._prefix: list[int] = []
        if chatglm:
            self._prefix = [self._cut[token] for token in _CHATGLM_PREFIX]
        elif special.add_bos is not False and self._model.bos_id() >= 0:
            self._prefix = [self._model.bos_id()]
        self._add_eos = special.add_eos is True and self._model.eos_id() >= 0
        self.vocab_size = max([size, *(i + 1 for i in self._added)])
        self.special_ids = frozenset(
            [i for i in range(size) if self._model.is_control(i) or self._model.is_unknown(i)]
            + [i for i, token in special.added.items() if token.special]
            + [i for c, i in self._cut.items() if c in contents]
        )
        drops = [i for i in self._model.encode("a") if self._model.id_to_piece(i).startswith("\u2581")] != []
        self.token_bytes = pieces.TokenBytes(self._bytes, drops)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        text.encode()
        ids = list(self._prefix) if add_special_tokens else []
        position = 0
        for match in self._pattern.finditer(text):
            ids += self._encode_plain(text[position : match.start()], position)
            ids.append(self._cut[match.group()])
            position = match.end()
        ids += self._encode_plain(text[position:], position)
        if add_special_tokens and self._add_eos:
            ids.append(self._model.eos_id())
        return ids

    def token_id(self, token: str) -> int | None:
        if token in self._cut:
            return self._cut[token]
        return self._model.piece_to_id(token) if self._is_piece(token) else None

    def _encode_plain(self, text: str, position: int) -> list[int]:
        return list((self._inner if position else self._model).encode(text)) if text else []

    def _is_piece(self, token: str) -> bool:
        token_id = self._model.piece_to_id(token)
        return self._model.id_to_piece(token_id) == token

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        if not 0 <= token_id < self._model.get_piece_size():
            return b""
        return pieces.byte_fallback(self._model.id_to_piece(token_id))

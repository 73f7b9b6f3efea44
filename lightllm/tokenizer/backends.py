"""What a tokenizer file format has to offer; `Tokenizer` builds everything else on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightllm.tokenizer.pieces import TokenBytes
from lightllm.tokenizer.text_stream import Step


class Backend(Protocol):
    """One per file format: `json_backend`, `sentencepiece_backend`, `tiktoken_backend`, `transformers_backend`."""

    vocab_size: int
    """Largest token id + 1."""
    special_ids: frozenset[int]
    """Ids that `skip_special_tokens` leaves out."""
    token_bytes: TokenBytes | None = None
    """How ids become bytes, where text is simply their concatenation; None: only `decode` knows."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`; raises `TypeError` or `UnicodeEncodeError` for text with lone surrogates."""

    def encode_pair(self, first: str, second: str, add_special_tokens: bool) -> list[int]:
        """Token ids of two texts that belong together; by default one behind the other."""
        return self.encode(first, add_special_tokens) + self.encode(second, False)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of `ids`; ids without a token count for nothing. Asked of formats without `token_bytes` alone."""
        raise AssertionError("the text of this format is that of its bytes")

    def stream_step(self, context: list[int], skip_special_tokens: bool) -> Step | None:
        """The format's own incremental decoder, begun behind the tokens of `context`; None if it has none for them."""
        return None

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its content."""

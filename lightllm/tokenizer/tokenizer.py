"""The tokenizer of one model, the same for every file format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightllm.errors import InvalidParameter
from lightllm.tokenizer.backends import Backend
from lightllm.tokenizer.chat_template import ChatTemplates
from lightllm.tokenizer.special_tokens import SpecialTokens
from lightllm.tokenizer.text_stream import ByteStream, PieceTable, TextStream, WindowStream


class Tokenizer:
    """Encodes, decodes, renders chats. Safe to use from several threads, as long as each stream stays in one."""

    def __init__(
        self, backend: Backend, special_tokens: SpecialTokens, chat_templates: ChatTemplates
    ) -> None:
        self._backend = backend
        self._chat_templates = chat_templates
        self.vocab_size = backend.vocab_size
        """Largest token id + 1; a model may have more rows than that (padding), which decode to nothing."""
        self.special_ids = backend.special_ids
        self.special_tokens = special_tokens.named
        """`bos_token` and the like -> content."""
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        """The tokenizer's own; which ids end a request is `model_files.eos_token_ids`."""
        self._tables: dict[bool, PieceTable] = {}
        if backend.token_bytes is not None:
            of_id = backend.token_bytes.of_id
            self._tables = {
                True: PieceTable(of_id, self.vocab_size, self.special_ids),
                False: PieceTable(of_id, self.vocab_size, frozenset()),
            }

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with `add_special_tokens` BOS and the like as the model wants them. Releases the GIL.

        Raises `InvalidParameter` for text that is not valid Unicode.
        """
        try:
            return self._backend.encode(text, add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidParameter(
                "the text is not valid Unicode: it holds a surrogate without its partner", param="prompt"
            ) from error

    def decode(
        self, ids: Sequence[int], skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str:
        """Text of token ids, U+FFFD where bytes are no character. Ids outside the vocabulary count for nothing.

        `spaces_between_special_tokens` is part of the interface of slow tokenizers; fast ones put no spaces there,
        and neither does this.
        """
        if not self._tables:
            return self._backend.decode(self._known(ids), skip_special_tokens)
        data = self._tables[skip_special_tokens].data
        text = b"".join([data(int(i)) for i in ids]).decode(errors="replace")
        drops = self._backend.token_bytes is not None and self._backend.token_bytes.drops_first_space
        return text.removeprefix(" ") if drops else text

    def stream(
        self,
        prompt_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> TextStream:
        """A stream for the output that follows `prompt_ids` (which decide about a leading space)."""
        if self._tables:
            drops = self._backend.token_bytes is not None and self._backend.token_bytes.drops_first_space
            return ByteStream(self._tables[skip_special_tokens], prompt_ids, drops)
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return WindowStream(
            lambda ids: self._backend.decode(ids, skip_special_tokens),
            lambda i: 0 <= i < self.vocab_size and i not in skipped,
            prompt_ids,
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special tokens included; b"" outside the vocabulary."""
        if self._tables:
            return self._tables[False].data(int(token_id))
        return self.decode([token_id], skip_special_tokens=False).encode()

    def all_token_bytes(self) -> list[bytes] | None:
        """`token_bytes` of every id below `vocab_size`, none of them kept; None if text is not their concatenation."""
        known = self._backend.token_bytes
        return None if known is None else [known.of_id(token_id) for token_id in range(self.vocab_size)]

    def token_text(self, token_id: int) -> str:
        """The text of one token alone: with its leading space, U+FFFD for parts of characters."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token given by its content, e.g. "<|im_end|>"."""
        return self._backend.token_id(token)

    @property
    def has_chat_template(self) -> bool:
        return bool(self._chat_templates)

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> str:
        """The conversation as one string; encode it with `add_special_tokens=False`, it has its own BOS.

        Everything in `messages`, `tools` and `kwargs` (variables for the template) must be plain JSON data. Raises
        `InvalidParameter` if the model has no template, or if its template refuses the conversation.
        """
        variables = {**self.special_tokens, **kwargs}
        return self._chat_templates.render(messages, tools, add_generation_prompt, variables)

    def _named_id(self, name: str) -> int | None:
        content = self.special_tokens.get(name)
        return None if content is None else self._backend.token_id(content)

    def _known(self, ids: Sequence[int]) -> list[int]:
        return [int(i) for i in ids if 0 <= i < self.vocab_size]

"""The tokenizer of one model, the same for every file format."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter
from lightllm.tokenizer.backends import Backend
from lightllm.tokenizer.chat_template import ChatTemplates
from lightllm.tokenizer.special_tokens import SpecialTokens
from lightllm.tokenizer.text_stream import CONTEXT_TOKENS, LibraryStream, TextStream, WindowStream


class Tokenizer:
    """Encodes, decodes, renders chats. Safe to use from several threads, as long as each stream stays in one."""

    def __init__(
        self, backend: Backend, special_tokens: SpecialTokens, chat_templates: ChatTemplates
    ) -> None:
        self._backend = backend
        self.chat_templates = chat_templates
        self.vocab_size = backend.vocab_size
        """Largest token id + 1; a model may have more rows than that (padding), which decode to nothing."""
        self.special_ids = backend.special_ids
        self.special_tokens = special_tokens.named
        """`bos_token` and the like -> content."""
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        """The tokenizer's own; which ids end a request is `model_folder.config.eos_token_ids`."""
        self._bytes_of = None if backend.token_bytes is None else cache(backend.token_bytes.of_id)
        self._readers = {skip: _Reader.of(backend, self._bytes_of, skip) for skip in (False, True)}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids; with `add_special_tokens` BOS and the like as the model wants them. Releases the GIL.

        Raises `InvalidParameter` for text that is not valid Unicode.
        """
        return self._encoded(partial(self._backend.encode, text, add_special_tokens))

    def encode_pair(self, first: str, second: str, add_special_tokens: bool = True) -> list[int]:
        """The same of two texts that belong together, a query and a document: as the model's tokenizer joins them."""
        return self._encoded(partial(self._backend.encode_pair, first, second, add_special_tokens))

    def _encoded(self, encode: Callable[[], list[int]]) -> list[int]:
        try:
            return encode()
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidParameter(
                "the text is not valid Unicode: it holds a surrogate without its partner", param="prompt"
            ) from error

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids, U+FFFD where bytes are no character. Ids outside the vocabulary count for nothing. No spaces are put
        between special tokens, as fast tokenizers have it."""
        reader = self._readers[skip_special_tokens]
        return reader.text([*filter(reader.has_text, map(int, ids))])

    def stream(self, prompt_ids: Sequence[int], skip_special_tokens: bool = True) -> TextStream:
        """A stream for the output that follows `prompt_ids` (which decide about a leading space)."""
        reader = self._readers[skip_special_tokens]
        last = itertools.islice(filter(reader.has_text, map(int, reversed(prompt_ids))), CONTEXT_TOKENS)
        context = [*last][::-1]
        step = self._backend.stream_step(context, skip_special_tokens)
        if step is None:
            return WindowStream(reader.text, reader.has_text, context)
        return LibraryStream(step, context, partial(WindowStream, reader.text, reader.has_text))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special tokens included; b"" outside the vocabulary."""
        if self._bytes_of is None:
            return self.decode([token_id], skip_special_tokens=False).encode()
        return self._bytes_of(int(token_id)) if 0 <= token_id < self.vocab_size else b""

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

    def close(self) -> None:
        """Ends the processes that render chats; another chat would start one again."""
        self.chat_templates.close()

    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        must_read: Sequence[str] = (),
        image_marker: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The conversation as one string; encode it with `add_special_tokens=False`, it has its own BOS.

        Everything in `messages`, `tools` and `kwargs` (variables for the template; those in `must_read` may not be without
        effect) must be plain JSON data. `add_generation_prompt`: begin the answer; by default unless the last message is to be
        continued. `image_marker`: what stands for an image where the template reads texts only. Raises `InvalidParameter` if the model has no template, if its template refuses the conversation, takes too
        much time or memory for it, or would leave a message out.
        """
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        variables = {**self.special_tokens, **kwargs}
        return self.chat_templates.render(
            messages, tools, add_generation_prompt, variables, continue_final_message, must_read, image_marker
        )

    def _named_id(self, name: str) -> int | None:
        content = self.special_tokens.get(name)
        return None if content is None else self._backend.token_id(content)


class _Reader(NamedTuple):
    """How ids become text, special tokens skipped or not."""

    has_text: Callable[[int], bool]
    """False for ids that decoding takes no notice of."""
    text: Callable[[list[int]], str]
    """Text of ids that all have some."""

    @classmethod
    def of(cls, backend: Backend, bytes_of: Callable[[int], bytes] | None, skip: bool) -> _Reader:
        size, skipped = backend.vocab_size, backend.special_ids if skip else frozenset()
        if backend.token_bytes is None or bytes_of is None:
            return cls(lambda i: 0 <= i < size and i not in skipped, lambda ids: backend.decode(ids, skip))
        drops_first_space = backend.token_bytes.drops_first_space

        def has_text(token_id: int) -> bool:
            return 0 <= token_id < size and token_id not in skipped and bytes_of(token_id) != b""

        def text(ids: list[int]) -> str:
            whole = b"".join(map(bytes_of, ids)).decode(errors="replace")
            return whole.removeprefix(" ") if drops_first_space else whole

        return cls(has_text, text)

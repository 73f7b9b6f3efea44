"""How a model for scores reads a query and a document: in its template, in Qwen3-Reranker's form, or as its tokenizer joins two
texts. What is too long is cut at the document, never at what stands around it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from lightllm.errors import InvalidOption, InvalidParameter, PromptTooLong
from lightllm.httpserver.reading.prompts import CHARACTERS_PER_TOKEN, PIECE_CHARACTERS
from lightllm.tokenizer.tokenizer import Tokenizer

_QUERY, _DOCUMENT, _INSTRUCTION = "lightllmAQUERY", "lightllmBDOCUMENT", "lightllmCINSTRUCTION"
"""Words in the places of texts while a template is read."""
_PLACES = re.compile(f"({_QUERY}|{_DOCUMENT}|{_INSTRUCTION})")
_NAMED = {role: re.compile(f"""["']{role}["']""") for role in ("query", "document")}
"""What a template has that is made for pairs: these roles of messages, as vLLM and sentence-transformers call them."""
_QWEN3_RERANKER = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    f"<Instruct>: {_INSTRUCTION}\n<Query>: {_QUERY}\n<Document>: {_DOCUMENT}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
"""What Qwen3-Reranker was mostly trained with."""


@dataclasses.dataclass(frozen=True)
class PairForm:
    """Encodes pairs under one instruction."""

    parts: tuple[str, ...] = ()
    """Texts and places in turn; none: the tokenizer joins a pair."""
    instruction: str = ""

    def encode(self, tokenizer: Tokenizer, query: str, document: str, special: bool | None) -> list[int]:
        """special: with BOS and the like; None: as the form has it."""
        if not self.parts:
            return tokenizer.encode_pair(query, document, special is not False)
        texts = {_QUERY: query, _DOCUMENT: document, _INSTRUCTION: self.instruction}
        return tokenizer.encode("".join(texts.get(part, part) for part in self.parts), bool(special))

    def encode_cut(
        self, tokenizer: Tokenizer, query: str, document: str, special: bool | None, keep: int, left: bool
    ) -> list[int]:
        """At most `keep` token ids; left: the document's beginning is dropped, not its end. Raises `PromptTooLong` where that
        leaves nothing of the document."""
        size = max(PIECE_CHARACTERS, keep * CHARACTERS_PER_TOKEN)
        document = document[-size:] if left else document[:size]
        ids = self.encode(tokenizer, query, document, special)
        whole = tokenizer.encode(document, False)
        count = len(whole)
        while len(ids) > keep:
            count -= len(ids) - keep
            if count <= 0:
                raise PromptTooLong(
                    f"without its document the input has more than the {keep} tokens that are kept",
                    param="truncate_prompt_tokens",
                )
            part = tokenizer.decode(whole[-count:] if left else whole[:count], skip_special_tokens=False)
            ids = self.encode(tokenizer, query, part, special)
        return ids


class PairForms:
    """Of one model."""

    def __init__(self, tokenizer: Tokenizer, judges: bool) -> None:
        """judges: the model answers yes or no. Raises `InvalidOption` if nothing says how it is asked."""
        self._tokenizer = tokenizer
        source = tokenizer.chat_templates.source() or ""
        self._templated = all(name.search(source) for name in _NAMED.values())
        self._judges = judges and not self._templated
        self._parts: dict[bool, tuple[str, ...]] = {}
        """By whether there is an instruction."""
        if self._judges and tokenizer.token_id("<|im_end|>") is None:
            raise InvalidOption(
                "Nothing says how this model is asked whether a document fits a query.",
                'Give --chat_template a template of messages with the roles "query" and "document".',
            )

    def form(self, instruction: str | None) -> PairForm:
        """Blocks while a template is read, which happens once. Raises `InvalidParameter` for an instruction that has no place, and a template that has none for a text."""
        if self._judges:
            parts = tuple(_PLACES.split(_QWEN3_RERANKER))
            return PairForm(parts, _WEB_SEARCH if instruction is None else instruction)
        if not self._templated:
            if instruction is not None:
                raise InvalidParameter(
                    "instruction: this model has no template with a place for it", param="instruction"
                )
            return PairForm()
        instructed = instruction is not None
        if instructed not in self._parts:
            self._parts[instructed] = self._read_template(instructed)
        return PairForm(self._parts[instructed], instruction or "")

    def _read_template(self, instructed: bool) -> tuple[str, ...]:
        roles = {"system": _INSTRUCTION} if instructed else {}
        roles |= {"query": _QUERY, "document": _DOCUMENT}
        messages = [{"role": role, "content": word} for role, word in roles.items()]
        try:
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        except InvalidParameter as error:
            field = "instruction" if instructed else None
            raise InvalidParameter(f"the template for pairs: {error.message}", param=field) from error
        parts = tuple(_PLACES.split(text))
        if missing := set(roles.values()) - set(parts):
            what = "instruction" if missing == {_INSTRUCTION} else "query or document"
            raise InvalidParameter(f"the template for pairs has no place for the {what}", param="instruction")
        return parts


def shortened(tokenizer: Tokenizer, most: int) -> Callable[[str], str]:
    """Cuts texts that have more than `most` tokens."""

    def shorten(text: str) -> str:
        ids = tokenizer.encode(text[: max(PIECE_CHARACTERS, most * CHARACTERS_PER_TOKEN)], False)
        return text if len(ids) <= most else tokenizer.decode(ids[:most], skip_special_tokens=False)

    return shorten

"""Fill in the middle: a prompt of what stands before and behind the text that is wanted, for models that were trained on it.

Which models these are, and how they read it, their tokenizers tell: the tokens that mark the parts have a name in each family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from lightllm.errors import InvalidParameter


@dataclasses.dataclass(frozen=True)
class FimTokens:
    """Token ids that stand before the parts of a prompt."""

    prefix: int
    suffix: int
    middle: int | None
    """None: the suffix comes first, and the answer follows the prefix."""
    ends: tuple[int, ...]
    """What such a model may write when the middle is complete, besides EOS."""

    def prompt(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Token ids of a prompt, without BOS."""
        if self.middle is None:
            return [self.suffix, *suffix, self.prefix, *prefix]
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]


_FAMILIES: tuple[tuple[str, str, str | None, tuple[str, ...]], ...] = (
    # Qwen2.5-Coder (technical report, 3.1), CodeGemma, Granite 4
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", ("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")),
    # StarCoder 1 and 2, Granite code
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>", ("<fim_pad>", "<file_sep>", "<repo_name>", "<|endoftext|>")),
    # DeepSeek-Coder, DeepSeek V2 and V3
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", ()),
    # CodeLlama
    ("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",)),
    # CodeGeeX 4, GLM-4
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", ()),
    # Codestral
    ("[PREFIX]", "[SUFFIX]", None, ()),
)  # fmt: skip
"""What stands before the prefix, the suffix and the middle, and what else ends it."""


def fim_tokens(token_id: Callable[[str], int | None]) -> FimTokens:
    """Those of a tokenizer. Raises `InvalidParameter` where it has none. token_id: the id of a token, by its content."""
    for prefix, suffix, middle, ends in _FAMILIES:
        ids = [token_id(token) for token in (prefix, suffix, middle or prefix)]
        first, second, third = ids
        if first is not None and second is not None and third is not None:
            known = tuple(found for token in ends if (found := token_id(token)) is not None)
            return FimTokens(first, second, None if middle is None else third, known)
    raise InvalidParameter(
        "suffix needs a model that fills in the middle: this one's tokenizer has no tokens for it",
        param="suffix",
    )

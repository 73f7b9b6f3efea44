"""From the blocks of a text to the blocks of its tokens. The controller has no tokenizer: it learns from workers' answers.

    prompt      |--- 256 bytes ---|--- 256 bytes ---|--- ...        keys as `Ask.blocks` has them
    its tokens  |-- 64 tokens --|-- 64 tokens --|-- 64 tokens --|   keys as the worker's cache events have them

A prefix of the text is mapped to the last block of tokens that ends safely inside it; two prompts that share the text share that
block, too. A prompt whose blocks nobody has told yet is in no cache that this controller has filled.
"""

from __future__ import annotations

from collections import OrderedDict

from lightllm.cluster.ask import Ask
from lightllm.protocol.kv_events import BLOCK_TOKENS, ToldPrompt

MOST = 1 << 18
"""Blocks that are known; the longest unused is forgotten."""
_INSIDE = 1
"""Blocks of tokens between the end of a text and the block that it is mapped to: texts have more tokens here and fewer there."""
NOTHING = 0
"""The key of a prefix that no whole block is in."""


class PromptMap:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[tuple[str, int], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, ask: Ask, told: ToldPrompt) -> None:
        per_token = told.tokens / max(1, ask.prompt_tokens)
        for index, block in enumerate(ask.blocks):
            whole = int((index + 1) * per_token) - (0 if ask.is_ids else _INSIDE)
            place = whole // told.step - 1
            key = told.keys[min(place, len(told.keys) - 1)] if place >= 0 and told.keys else NOTHING
            self._known[ask.model, block] = key
            self._known.move_to_end((ask.model, block))
        while len(self._known) > self._most:
            self._known.popitem(last=False)

    def keys(self, ask: Ask) -> list[int]:
        """Of the leading blocks that are known."""
        keys = []
        for block in ask.blocks:
            key = self._known.get((ask.model, block))
            if key is None:
                break
            keys.append(key)
        return keys


assert BLOCK_TOKENS == 64  # one block of a text is one of its tokens, at 4 bytes a token

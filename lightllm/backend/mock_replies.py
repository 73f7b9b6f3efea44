"""The mock backend's replies: which of several texts a request gets, by what stands in its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from lightllm.protocol.rounds import Round

if TYPE_CHECKING:
    from lightllm.tokenizer import Tokenizer


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the file of replies."""

    text: str
    after: str = ""
    """A request whose prompt holds this gets `text`; "": one whose prompt holds no `after`."""


def read_replies(path: str) -> tuple[Reply, ...]:
    """A file of JSON: a list of objects with `text` and `after`. Raises `ValueError`."""
    try:
        replies = msgspec.json.decode(Path(path).read_bytes(), type=tuple[Reply, ...])
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(str(error)) from error
    if not replies or not all(reply.text for reply in replies):
        raise ValueError("there must be a reply, and each must have a text")
    return replies


def reply_for(replies: tuple[Reply, ...], prompt: str) -> int:
    """Index of the reply whose `after` ends last in the prompt, of equal ones the first."""
    ends = [
        prompt.rfind(reply.after) + len(reply.after) if reply.after in prompt else -1 for reply in replies
    ]
    ends = [0 if reply.after == "" else end for reply, end in zip(replies, ends, strict=True)]
    return int(np.argmax(ends))


class RowPrompts:
    """The tokens of each row's prompt, of which a round brings only those that no KV slot holds yet."""

    def __init__(self, slots: int, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._in_slot = np.zeros(slots, np.int32)
        """Slot -> the token whose KV it holds."""
        self._of_row: dict[int, list[np.ndarray]] = {}

    def take(self, round: Round, decoded: np.ndarray) -> None:
        """Notes the tokens of a round; `decoded` int32 [tokens of the decode rows] are those that it takes from the device."""
        for join in round.joins:
            self._of_row[join.row] = [self._in_slot[join.prefix_slots]]
        self._in_slot[round.slots] = np.concatenate((decoded, round.token_ids))
        chunks = np.split(round.token_ids, np.cumsum(round.q_len[round.num_decode :])[:-1])
        for row, chunk in zip(round.rows[round.num_decode :].tolist(), chunks, strict=False):
            self._of_row[row].append(chunk)

    def text(self, row: int, prompt_len: int) -> str:
        return self._tokenizer.decode(np.concatenate(self._of_row[row])[:prompt_len].tolist(), False)

"""The mock backend's script: which token comes at which position of which request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightllm.backend.mock_spec import MockSpec
from lightllm.protocol.messages import TopLogprobs
from lightllm.protocol.rounds import JoinRow

_NEVER = np.iinfo(np.int64).max


class MockRows:
    """What is known of the request in each row: parallel arrays, indexed by row."""

    def __init__(self, count: int) -> None:
        self.prompt_len = np.zeros(count, np.int64)
        self.state = np.zeros(count, np.uint64)
        """What the seed and the choice are mixed to."""
        self.length = np.full(count, _NEVER)
        """Output number (from 1) of the token that is an EOS."""
        self.eos_id = np.full(count, -1)
        self.min_new_tokens = np.ones(count, np.int64)
        self.stop_ids: list[frozenset[int]] = [frozenset()] * count
        """Ids that may not come before min_new_tokens; only for rows where that matters."""
        self.reply = np.zeros(count, np.int64)
        """Which text of the script is the answer."""
        self.top_k = np.zeros(count, np.int64)
        self.prompt_top_k = np.full(count, -1)

    def join(self, join: JoinRow, script: "MockScript") -> None:
        row, params = join.row, join.params
        self.prompt_len[row] = join.prompt_len
        self.state[row] = _mix(np.array([join.seed], np.uint64) + _GOLDEN * np.uint64(join.choice))[0]
        self.eos_id[row] = next((i for i in join.end_token_ids if i in script.eos), -1)
        self.length[row] = script.length(int(self.state[row])) if self.eos_id[row] >= 0 else _NEVER
        self.reply[row] = 0
        self.min_new_tokens[row] = params.min_new_tokens
        self.stop_ids[row] = frozenset(join.end_token_ids) if params.min_new_tokens > 1 else frozenset()
        self.top_k[row] = max(params.logprobs, 0)
        self.prompt_top_k[row] = params.prompt_logprobs

    def answer_with(self, row: int, reply: int, script: "MockScript") -> None:
        """The row's answer is this text of the script."""
        self.reply[row] = reply
        self.length[row] = script.text_length(reply) if self.eos_id[row] >= 0 else _NEVER


class MockScript:
    """Which token comes at which position."""

    def __init__(self, spec: MockSpec, vocab_size: int, eos: list[int], texts: Sequence[list[int]]) -> None:
        """`texts`: token ids of the texts that are answers; none: answers are drawn."""
        self.eos = frozenset(eos)
        alphabet = np.setdiff1d(np.arange(vocab_size, dtype=np.int32), np.array(eos, dtype=np.int32))
        self._alphabet = np.concatenate([np.array(ids, np.int32) for ids in texts]) if texts else alphabet
        self._sizes = np.array([len(ids) for ids in texts])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._spec = spec

    def length(self, state: int) -> int:
        """Output length, the EOS included, of a request with this state."""
        if len(self._sizes):
            return self.text_length(0)
        if self._spec.lengths is not None:
            low, high = self._spec.lengths
            return low + state % (high - low + 1)
        return self._spec.eos_after or _NEVER

    def text_length(self, reply: int) -> int:
        return int(self._sizes[reply]) + 1

    def counts(self, rows: MockRows, at: np.ndarray, positions: np.ndarray, most: np.ndarray) -> np.ndarray:
        """int64 [n]: how many tokens the rows `at` bring, the first of them output number `positions`; at most `most`."""
        low, high = self._spec.round_tokens
        if high == 1:
            return np.ones(len(at), dtype=np.int64)
        noise = _mix(~rows.state[at] + _GOLDEN * positions.astype(np.uint64))
        return np.minimum(low + (noise % np.uint64(high - low + 1)).astype(np.int64), most)

    def sample(self, rows: MockRows, at: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (int32) and log-probabilities (float32) of the rows `at` for output positions (from 0)."""
        state, places = rows.state[at], positions.astype(np.uint64)
        noise = _mix(state + _GOLDEN * places)
        size = np.uint64(len(self._alphabet))
        if len(self._sizes):
            reply = rows.reply[at]
            index = self._starts[reply] + positions % self._sizes[reply]
        elif self._spec.tokens == "cycle":
            index = (state % size + places) % size
        else:
            index = noise % size
        tokens = self._alphabet[index.astype(np.int64)]
        ends = positions + 1 >= np.maximum(rows.length[at], rows.min_new_tokens[at])
        tokens = np.where(ends & (rows.eos_id[at] >= 0), rows.eos_id[at], tokens).astype(np.int32)
        for i in np.flatnonzero(positions + 1 < rows.min_new_tokens[at]):
            tokens[i] = self._allowed(int(tokens[i]), rows.stop_ids[at[i]])
        fraction = (noise >> np.uint64(44)).astype(np.float32) * np.float32(2.0**-20)
        return tokens, np.float32(-0.05) - fraction

    def _allowed(self, token: int, forbidden: frozenset[int]) -> int:
        """The token itself, or the next of the alphabet that is allowed."""
        if token not in forbidden:
            return token
        return next((int(i) for i in self._alphabet if int(i) not in forbidden), token)

    def alternatives(self, token: int, logprob: float, k: int) -> TopLogprobs:
        """The chosen token as the best, then k - 1 others."""
        others = [int(i) for i in self._alphabet[:k] if int(i) != token][: k - 1]
        return TopLogprobs([token, *others], [logprob - 0.5 * i for i in range(1 + len(others))])


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    """The output function of splitmix64 (Steele, Lea and Flood, 2014): 64 bits to 64 well-mixed bits."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))

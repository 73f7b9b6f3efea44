"""One request inside the Router: its states, and what the Router knows about it.

    waiting ──> prefilling ──> decoding ──> finished | aborted      (the last two from every state)
                    ^  │          │  ^
                    │  └> pausing <┘ │      none of its rounds may be in flight when it pauses
                    │        v       │
                    └───── paused    └────  prefilling again when a failed round was undone

"Decoding" is a planning state: it begins when the round with the last prompt chunk has been planned.
"""

from __future__ import annotations

import enum
from array import array

import numpy as np

from lightllm.protocol.arrays import EMPTY_INT32
from lightllm.protocol.messages import AddRequest, Choice
from lightllm.protocol.rounds import JoinRow
from lightllm.router.memory.radix_node import Node
from lightllm.sampling_params import SamplingParams

NO_ROW = -1


class State(enum.Enum):
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    PAUSING = "pausing"
    PAUSED = "paused"
    FINISHED = "finished"
    ABORTED = "aborted"


TRANSITIONS: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILLING, State.FINISHED, State.ABORTED}),
    State.PREFILLING: frozenset({State.DECODING, State.PAUSING, State.FINISHED, State.ABORTED}),
    State.DECODING: frozenset({State.PREFILLING, State.PAUSING, State.FINISHED, State.ABORTED}),
    State.PAUSING: frozenset({State.PAUSED, State.FINISHED, State.ABORTED}),
    State.PAUSED: frozenset({State.PREFILLING, State.FINISHED, State.ABORTED}),
    State.FINISHED: frozenset(),
    State.ABORTED: frozenset(),
}
"""Every change of state that is allowed; anything else is a defect of the Router."""


class Request:
    """What the Router keeps about one accepted request (one sibling of `n`).

    Confirmed: `output_ids`, which only results extend. Planned: KV length and outputs still to be planned, which live in
    `Running`, indexed by `row`.
    """

    __slots__ = (
        "cached_spans", "context", "entered", "group", "id", "index", "may_wait", "max_new_tokens", "needs_join", "node", "output_ids", "pooled",
        "params", "priority", "prompt_done", "prompt_ids", "prompt_logprobs_sent", "restored", "row", "runs_to_limit", "seen", "serial", "shared",
        "state", "end_token_ids", "uncut", "images",
    )  # fmt: skip

    def __init__(
        self, message: AddRequest, choice: Choice, serial: int, group: int, end_token_ids: frozenset[int]
    ) -> None:
        params = message.params
        self.id = choice.request_id
        self.index = choice.index
        self.serial = serial
        """Order of arrival: within a priority, which is served first, and which pauses last."""
        self.group = group
        """Siblings, the choices of one request, have the same number."""
        self.priority = params.priority
        """The lower the earlier."""
        self.prompt_ids = np.ascontiguousarray(message.prompt_ids, dtype=np.int32)
        self.params = params
        self.max_new_tokens = params.max_new_tokens
        self.end_token_ids = end_token_ids
        self.restored = message.restored
        """A Router that is gone had accepted it."""
        self.uncut = message.uncut
        """int32 [2 * spans]: see `AddRequest.uncut`."""
        self.images = message.images
        self.runs_to_limit = not end_token_ids and not params.stop_sequences
        """Nothing but `max_new_tokens` or an abort ends it."""
        self.output_ids = array("i", choice.output_ids.astype(np.int32).tobytes())
        """int32: confirmed outputs; while the request decodes, those up to the last `Running.collect`."""
        self.state = State.WAITING
        self.row = NO_ROW
        self.entered = 0.0
        """`time.monotonic()` of the round with which it had a row for the first time; 0: it has had none, or nobody knows."""
        self.context = EMPTY_INT32
        """int32: what is prefilled: prompt and outputs, as they are when the prefill begins (`begin_prefill`)."""
        self.needs_join = False
        self.pooled: np.ndarray | None = None
        """float32 [size]: what confirmed rounds have made of the vector of its prompt (models for vectors)."""
        self.prompt_logprobs_sent = 0
        """Prompt positions below this have been reported."""
        self.node: Node | None = None
        """While it has a row: the end of its prefix in the cache, `shared` tokens long."""
        self.shared = 0
        self.may_wait = False
        """Its prefill may skip rounds, in which others compute what both need."""
        self.prompt_done = len(choice.output_ids) > 0
        """An output has been confirmed: what was computed of the prompt and what was cached is settled."""
        self.seen = len(self.prompt_ids) if self.prompt_done else 0
        """Prompt tokens below this were once in its context, computed or cached."""
        self.cached_spans = [(0, choice.cached_tokens)] if choice.cached_tokens else []
        """[start, end): prompt tokens that the cache held when they came into its context."""

    @property
    def prompt_len(self) -> int:
        return len(self.prompt_ids)

    @property
    def target(self) -> int:
        """KV slots at its longest: the token sampled last needs none."""
        return len(self.prompt_ids) + self.max_new_tokens - 1

    @property
    def known_tokens(self) -> int:
        """Prompt and confirmed outputs: what a prefill from nothing has to compute."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that it did not compute."""
        return sum(end - start for start, end in self.cached_spans)

    def mark_in_context(self, start: int, end: int, cached: bool) -> None:
        """Tokens [start, end) are in its context from the next round on."""
        first, end = max(start, self.seen), min(end, self.prompt_len)
        if first < end:
            self.seen = end
            if cached:
                self.cached_spans.append((first, end))

    def mark_lost(self, kv_len: int) -> None:
        """Only the first `kv_len` tokens are in its context after all."""
        if self.seen > kv_len and not self.prompt_done:
            self.seen = kv_len
            spans = [(start, min(end, kv_len)) for start, end in self.cached_spans]
            self.cached_spans = [(start, end) for start, end in spans if start < end]

    def add_pooled(self, values: np.ndarray) -> None:
        """What another chunk adds to the vector of its prompt: float32 [size]."""
        self.pooled = values if self.pooled is None else self.pooled + values

    def transition(self, state: State) -> None:
        """The one place where the state changes."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"request {self.id}: {self.state.value} -> {state.value} is not allowed")
        self.state = state

    def chunk_end(self, start: int, end: int) -> int:
        """Where a chunk that begins at `start` and would end at `end` ends, so that it cuts no span of `uncut`: before the
        span, or behind it if the chunk begins there."""
        span = int(np.searchsorted(self.uncut, end))
        if span % 2 == 0:  # an even number of bounds lies below `end`: it is in no span, or where one begins
            return end
        first, last = self.uncut[span - 1 : span + 1].tolist()
        if end == last:
            return end
        return first if first > start else last

    def begin_prefill(self) -> None:
        """Freezes the context to prefill; its first chunk will carry a `JoinRow`."""
        self.needs_join = True
        self.context = self.all_ids()

    def all_ids(self) -> np.ndarray:
        """int32 [known_tokens]"""
        if not self.output_ids:
            return self.prompt_ids
        return np.concatenate([self.prompt_ids, np.frombuffer(self.output_ids, dtype=np.int32)])

    def ids(self, start: int, end: int) -> np.ndarray:
        """int32 [end - start]: a copy of these of `all_ids`."""
        outputs = start - self.prompt_len
        if outputs < 0:
            return self.all_ids()[start:end].copy()
        return np.frombuffer(self.output_ids[outputs : end - self.prompt_len], dtype=np.int32)

    def join_row(self, prefix_slots: np.ndarray) -> JoinRow:
        """How a backend learns of this request; `prefix_slots` int32: slots of the context that has KV already."""
        return JoinRow(
            row=self.row,
            prompt_len=self.prompt_len,
            params=self.params,
            seed=self.params.seed or 0,
            choice=self.index,
            end_token_ids=sorted(self.end_token_ids),
            prefix_slots=prefix_slots,
            history_ids=self.context if _needs_history(self.params) else EMPTY_INT32,
            images=self.images,
        )

    def finish_reason(self) -> str | None:
        """ "stop" or "length" if the outputs so far end the request."""
        outputs = self.output_ids
        if outputs and outputs[-1] in self.end_token_ids:
            return "stop"
        return "length" if len(outputs) >= self.max_new_tokens else None


def _needs_history(params: SamplingParams) -> bool:
    """Exponential decay needs lengths only."""
    return (
        params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or params.repetition_penalty != 1.0
        or params.prompt_logprobs >= 0
        or params.constrained
    )

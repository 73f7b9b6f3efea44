"""A device without a model: it keeps token ids where a backend keeps K and V, and checks every context that it reads.

The next token is a hash of the whole context, so any wrong slot, row or order changes the output.
"""

from __future__ import annotations

import zlib
from collections import deque

import msgspec
import numpy as np

from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice, RoundTokens
from lightllm.protocol.rounds import JoinRow, Resync, Round, RoundResult, RowError
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.sampling_params import SamplingParams
from support.scheduler_config import scheduler_config

EOS = 0
GARBAGE = -7


def next_token(context: np.ndarray, seed: int, choice: int, vocab: int) -> int:
    data = context.astype("<i4").tobytes() + bytes([seed % 256, choice % 256])
    return (zlib.crc32(data) >> 3) % vocab


def generate_alone(prompt: list[int], seed: int, choice: int, vocab: int, count: int) -> list[int]:
    """`count` tokens, EOS or not: what the fake model says to this prompt with nobody else around."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(int32(tokens), seed, choice, vocab))
    return tokens[len(prompt) :]


def cut_at_eos(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def make_limits(**changes) -> SchedulerConfig:
    values = {
        "max_total_token_num": 64, "max_req_total_len": 64, "running_max_req_size": 8, "batch_max_tokens": 16,
        "chunked_prefill_size": 8, "max_waiting_requests": 100, "eos_token_ids": [EOS], "worth_waiting": 2,
    }  # fmt: skip
    return scheduler_config(**(values | changes))


def add_request(
    ids: list[int] | int,
    prompt: list[int],
    max_new_tokens: int,
    outputs=(),
    restored=False,
    cached_tokens=0,
    **params,
) -> AddRequest:
    """The seed names the request, so that the device knows whose tokens a row must hold."""
    ids = [ids] if isinstance(ids, int) else ids
    params = {"seed": ids[0]} | params
    return AddRequest(
        prompt_ids=int32(prompt),
        params=SamplingParams(max_new_tokens=max_new_tokens, **params),
        choices=[Choice(i, index, int32(outputs), cached_tokens) for index, i in enumerate(ids)],
        restored=restored or len(outputs) > 0,
    )


class FakeDevice:
    """Executes rounds in order, as a backend would. `expected[(seed, choice)]`: prompt and outputs that a row may read."""

    def __init__(self, limits: SchedulerConfig, vocab: int = 1000) -> None:
        self.vocab = vocab
        self.slots = np.full(limits.max_total_token_num, GARBAGE)
        self.table = np.full((limits.max_rows, limits.max_req_total_len), GARBAGE)
        self.joins: dict[int, JoinRow] = {}
        self.lengths: dict[int, int] = {}
        self.last_token: dict[int, int] = {}
        self.expected: dict[tuple[int, int], list[int]] = {}
        self.computed: dict[tuple[int, int], int] = {}
        """(seed, choice) -> prompt tokens that were computed up to the first output."""
        self.highest: dict[tuple[int, int], int] = {}
        self.max_tokens = 0
        self.rounds = 0

    def expect(self, message: AddRequest) -> None:
        prompt = message.prompt_ids.tolist()
        seed = message.params.seed
        for choice in message.choices:
            new = generate_alone(prompt, seed, choice.index, self.vocab, message.params.max_new_tokens)
            self.expected[seed, choice.index] = prompt + new

    def execute(self, round_: Round) -> RoundResult:
        self._enter_and_leave(round_)
        self.rounds += 1
        self.max_tokens = max(self.max_tokens, len(round_.slots))
        assert len(set(round_.slots.tolist())) == len(round_.slots), "a slot is written twice in one round"
        assert len(set(round_.rows.tolist())) == len(round_.rows)
        sampled, counts, at, chunk_at = [], [], 0, 0
        for i, row in enumerate(round_.rows.tolist()):
            q_len, kv_len = int(round_.q_len[i]), int(round_.kv_len[i])
            assert self.lengths[row] + q_len == kv_len, "the row holds another length than the round says"
            slots = round_.slots[at : at + q_len]
            at += q_len
            if i < round_.num_decode:
                tokens = self._draft(row, q_len)
            else:
                tokens = round_.token_ids[chunk_at : chunk_at + q_len].tolist()
                chunk_at += q_len
            self.slots[slots] = tokens
            self.table[row, kv_len - q_len : kv_len] = slots
            self.lengths[row] = kv_len
            self._count(row, kv_len - q_len, kv_len)
            if round_.samples[i]:
                new = self._accept(row, kv_len, q_len) if i < round_.num_decode else self._sample(row, kv_len)
                sampled += new
                counts.append(len(new))
            else:
                self._check(row, kv_len)
        assert at == len(round_.slots) and chunk_at == len(round_.token_ids)
        logprobs = np.zeros(len(sampled), dtype=np.float32)
        return RoundResult(round_.seq, int32(sampled), logprobs, counts=int32(counts))

    def _draft(self, row: int, q_len: int) -> list[int]:
        """The token sampled last, and guesses of what follows, of which a part is right."""
        tokens = [self.last_token[row]]
        begin = self.lengths[row] + 1
        right = (begin + row + self.rounds) % q_len
        expected = self._expected(row)[begin : begin + right]
        tokens += expected
        return tokens + [GARBAGE] * (q_len - len(tokens))

    def _accept(self, row: int, kv_len: int, q_len: int) -> list[int]:
        """Tokens behind each of the new ones that are as they must be; the row's context ends with the last of these."""
        context = self.slots[self.table[row, :kv_len]].tolist()
        tokens: list[int] = []
        for end in range(kv_len - q_len + 1, kv_len + 1):
            if tokens and context[end - 1] != tokens[-1]:
                break
            self.lengths[row] = end
            tokens += self._sample(row, end)
        self.table[row, self.lengths[row] : kv_len] = GARBAGE
        return tokens

    def _count(self, row: int, start: int, end: int) -> None:
        join = self.joins[row]
        who = (join.seed, join.choice)
        self.highest.setdefault(who, 0)
        new = min(end, join.prompt_len) - max(start, self.highest[who])
        if new > 0:
            self.computed[who] = self.computed.get(who, 0) + new
        self.highest[who] = max(self.highest[who], end)

    def fail(self, round_: Round, out_of_memory: bool = False) -> RoundResult:
        """Breaks off in the middle: rows and slots of the round are garbage now."""
        self._enter_and_leave(round_)
        self.slots[round_.slots] = GARBAGE
        for row in round_.rows.tolist():
            self.last_token[row] = GARBAGE
            self.lengths[row] = GARBAGE
        return RoundResult(round_.seq, failed="broken", out_of_memory=out_of_memory)

    def _enter_and_leave(self, round_: Round) -> None:
        for row in round_.leaves:
            for state in (self.joins, self.lengths, self.last_token):
                state.pop(row, None)
        for join in round_.joins:
            row = join.row
            before = self.joins.get(row, join)
            assert (before.seed, before.choice) == (join.seed, join.choice), (
                "a row is joined that nobody left"
            )
            self.joins[row] = join
            self.lengths[row] = len(join.prefix_slots)
            self.last_token.pop(row, None)
            self.table[row] = GARBAGE
            self.table[row, : len(join.prefix_slots)] = join.prefix_slots
            if len(join.history_ids):
                known = self._expected(row)[: len(join.history_ids)]
                assert join.history_ids.tolist() == known
                assert len(join.history_ids) > len(join.prefix_slots)

    def _expected(self, row: int) -> list[int]:
        join = self.joins[row]
        return self.expected[join.seed, join.choice]

    def _check(self, row: int, kv_len: int) -> None:
        context = self.slots[self.table[row, :kv_len]]
        assert context.tolist() == self._expected(row)[:kv_len], "a row reads another one's tokens"

    def _sample(self, row: int, kv_len: int) -> list[int]:
        self._check(row, kv_len)
        join = self.joins[row]
        if join.params.constrained and row not in self.last_token:
            assert len(join.history_ids) == kv_len, "a matcher needs to know all that was said"
        token = next_token(self.slots[self.table[row, :kv_len]], join.seed, join.choice, self.vocab)
        self.last_token[row] = token
        return [token]


class Engine:
    """Scheduler and device with the queues between them; steps are taken one by one or to the end."""

    def __init__(self, limits: SchedulerConfig, vocab: int = 1000, policy=None, lengths=None) -> None:
        self.scheduler = Scheduler(limits, policy, lengths)
        self.device = FakeDevice(limits, vocab)
        self.rounds: deque[Round | Resync] = deque()
        self.results: deque[RoundResult] = deque()
        self.outputs: dict[int, list[int]] = {}
        self.finished: dict[int, object] = {}
        self.sent: list[Round] = []
        self.cached_tokens: dict[int, int] = {}
        self.entered: dict[int, float] = {}
        self.now = 0.0
        """By the scheduler's clock."""
        self.refusal = "constraint"
        """The kind of error when the device refuses."""
        self.refused: dict[tuple[int, int], int] = {}
        """(seed, choice) of requests that the device refused to go on with -> outputs that they had then."""
        self.skipping = False

    def add(self, message: AddRequest) -> None:
        self.device.expect(message)
        self.scheduler.add(message)
        for choice in message.choices:
            self.outputs[choice.request_id] = choice.output_ids.tolist()
        self.take(self.scheduler.drain_outputs())

    def plan(self) -> bool:
        round_ = self.scheduler.next_round(self.now)
        if round_ is not None:
            self.rounds.append(round_)
            self.sent.append(round_)
        return round_ is not None

    def execute(self, failure: str = "", refuse: int | None = None) -> bool:
        """The device takes its next message. `failure`: "", "broken" or "memory"; `refuse`: a number for the row that it
        refuses to go on with, if the round samples."""
        if not self.rounds:
            return False
        message = self.rounds.popleft()
        if isinstance(message, Resync):
            assert self.skipping
            self.skipping = False
        elif not self.skipping:
            self.skipping = bool(failure)
            work = self.device.execute
            result = self.device.fail(message, failure == "memory") if failure else work(message)
            if refuse is not None and message.samples.any():
                result = self._refuse(message, result, refuse % int(message.samples.sum()))
            self.results.append(result)
        return True

    def _refuse(self, round_: Round, result: RoundResult, position: int) -> RoundResult:
        entry = np.flatnonzero(round_.samples)[position]
        join = self.device.joins[int(round_.rows[entry])]
        who = join.seed, join.choice
        before = int(round_.kv_len[entry]) - int(round_.q_len[entry] if entry < round_.num_decode else 1)
        said = before + 1 - join.prompt_len
        self.refused[who] = min(said, self.refused.get(who, said))
        return msgspec.structs.replace(result, errors={int(entry): RowError("too complex", self.refusal)})

    def apply(self) -> bool:
        if not self.results:
            return False
        applied = self.scheduler.apply(self.results.popleft())
        self.take(applied.tokens)
        if applied.resync is not None:
            self.rounds.append(Resync(applied.resync))
        return True

    def take(self, tokens: RoundTokens | None) -> None:
        if tokens is None:
            return
        assert len(tokens.request_ids) == len(tokens.token_ids) == len(tokens.logprobs)
        for request_id, token in zip(tokens.request_ids, tokens.token_ids, strict=True):
            assert request_id not in self.finished, "a token behind the finish"
            self.outputs[request_id].append(token)
        for request_id, count in tokens.cached_tokens.items():
            assert self.cached_tokens.setdefault(request_id, count) == count
        for request_id, moment in tokens.entered.items():
            assert request_id not in self.entered, "it began twice"
            self.entered[request_id] = moment
        for finish in tokens.finished:
            assert finish.request_id not in self.finished, "two finishes"
            assert finish.output_tokens == len(self.outputs[finish.request_id])
            self.finished[finish.request_id] = finish

    def run(self, ahead: int = 2, check: bool = True) -> None:
        """Until nothing is left to do, with up to `ahead` rounds in flight."""
        for _ in range(100_000):
            planned = len(self.rounds) + len(self.results) < ahead and self.plan()
            if not planned and not self.execute() and not self.apply():
                assert not self.scheduler.has_work, "requests are left, but nothing happens"
                return
            while planned and self.results:
                self.apply()
            if check:
                self.scheduler.check_invariants()
        raise AssertionError("no end")

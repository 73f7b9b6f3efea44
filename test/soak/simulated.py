"""The scheduler under random everything, for millions of rounds: `python test/soak/simulated.py --rounds 1000000`.

Small memory, all policies, shared prefixes, siblings, priorities, aborts, flushes, rounds that fail, rows that cannot go on. The device keeps token
ids where a backend keeps K and V: whatever a row reads is compared with what its request has said, in every round.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from tqdm import tqdm

from lightllm.config import ServerConfig
from lightllm.errors import RequestError
from lightllm.protocol.arrays import int32
from lightllm.protocol.messages import AddRequest, Choice, RoundTokens
from lightllm.protocol.rounds import JoinRow, Resync, Round, RoundResult, RowError
from lightllm.router.scheduler import Scheduler
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.sampling_params import SamplingParams

EOS = 0
VOCAB = 40
OVERRUN = 3
"""Tokens behind the EOS that the device may be asked for."""
GARBAGE = -7
REFUSAL = "too complex"


@dataclasses.dataclass
class Spoken:
    """One choice of a request: what it says, and how much of that has come."""

    tokens: np.ndarray
    """int32: prompt, outputs, EOS, and what would follow it."""
    prompt_len: int
    output_len: int
    """Outputs that are to come, the EOS included or cut at max_new_tokens."""
    reason: str
    came: int = 0


class TokenDevice:
    """Executes rounds as a backend does; it is told what each request that joins a row will say."""

    def __init__(self, limits: SchedulerConfig) -> None:
        longest = limits.max_req_total_len
        self._memory = np.full(limits.max_total_token_num, GARBAGE, dtype=np.int32)
        self._table = np.zeros((limits.max_rows, longest + OVERRUN), dtype=np.int32)
        self._expected = np.full((limits.max_rows, longest + OVERRUN), GARBAGE, dtype=np.int32)
        self._length = np.full(limits.max_rows, GARBAGE, dtype=np.int32)
        self._last = np.full(limits.max_rows, GARBAGE, dtype=np.int32)
        """Token sampled last; what a decode row computes."""
        self._positions = np.arange(longest + OVERRUN)
        self._drawn = 1

    def execute(self, round_: Round, joining: list[np.ndarray]) -> RoundResult:
        """A decode row brings as many tokens as it is asked for, or fewer."""
        self._enter(round_, joining)
        rows, kv_len, slots = round_.rows, round_.kv_len, round_.slots
        assert (self._length[rows] + round_.q_len == kv_len).all(), (
            "a row holds another length than its round says"
        )
        decode, at, chunk_at = round_.num_decode, 0, 0
        counts = np.ones(len(rows), dtype=np.int32)
        for i in range(len(rows)):
            count, end = int(round_.q_len[i]), int(kv_len[i])
            own = slots[at : at + count]
            self._table[rows[i], end - count : end] = own
            at += count
            if i < decode:
                counts[i] = 1 + self._draw() % count
                assert self._last[rows[i]] == self._expected[rows[i], end - count]
                self._memory[own] = GARBAGE  # what was drafted, but for what counts
                self._memory[own[: counts[i]]] = self._expected[
                    rows[i], end - count : end - count + counts[i]
                ]
            else:
                self._memory[own] = round_.token_ids[chunk_at : chunk_at + count]
                chunk_at += count
        assert at == len(slots) and chunk_at == len(round_.token_ids)
        kv_len = kv_len - np.where(np.arange(len(rows)) < decode, round_.q_len - counts, 0)
        self._length[rows] = kv_len
        longest = int(kv_len.max())  # nobody reads beyond that
        wrong = self._memory.take(self._table[rows, :longest]) != self._expected[rows, :longest]
        assert not (wrong & (self._positions[:longest] < kv_len[:, None])).any(), (
            "a row reads another one's tokens"
        )
        sampled = round_.samples == 1
        speaking, counts, end = rows[sampled], counts[sampled], kv_len[sampled]
        self._last[speaking] = self._expected[speaking, end]
        places = np.arange(counts.sum()) + np.repeat(end + 1 - np.cumsum(counts), counts)
        tokens = self._expected[np.repeat(speaking, counts), places]
        return RoundResult(
            round_.seq, tokens, np.zeros(len(tokens), dtype=np.float32), seconds=0.01, counts=counts
        )

    def _draw(self) -> int:
        self._drawn = (self._drawn * 1103515245 + 12345) % 2**31
        return self._drawn >> 8

    def fail(self, round_: Round, joining: list[np.ndarray], out_of_memory: bool) -> RoundResult:
        """Breaks off in the middle: rows and slots of the round are garbage."""
        self._enter(round_, joining)
        self._memory[round_.slots] = GARBAGE
        self._length[round_.rows] = self._last[round_.rows] = GARBAGE
        none = RoundResult(round_.seq)
        return RoundResult(
            none.seq, none.token_ids, none.logprobs, failed="broken", out_of_memory=out_of_memory
        )

    def _enter(self, round_: Round, joining: list[np.ndarray]) -> None:
        assert len(set(round_.slots.tolist())) == len(round_.slots), "a slot is written twice in one round"
        if round_.leaves:
            self._length[round_.leaves] = self._last[round_.leaves] = GARBAGE
        for join, said in zip(round_.joins, joining, strict=True):
            self._join(join, said)

    def _join(self, join: JoinRow, said: np.ndarray) -> None:
        row, prefix = join.row, join.prefix_slots
        self._expected[row] = GARBAGE
        self._expected[row, : len(said)] = said
        self._table[row] = 0
        self._table[row, : len(prefix)] = prefix
        self._length[row] = len(prefix)
        self._last[row] = GARBAGE


class Soak:
    """One scheduler, its device, and everybody who disturbs them; the same seed does the same."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.limits = random_limits(self.random)
        self.scheduler = Scheduler(self.limits)
        self.spoken: dict[tuple[int, int], Spoken] = {}
        self.living: dict[int, tuple[int, int]] = {}
        """Request id -> (seed, choice)."""
        self.device = TokenDevice(self.limits)
        self.rounds = self.finished = self.failed = self.refused = 0
        self._longest = self.limits.max_req_total_len
        self._texts = self.random.integers(1, VOCAB, (6, self._longest), dtype=np.int32)
        self._queue: deque[tuple[Round | Resync, list[np.ndarray]]] = deque()
        """With what those who join will say: they may be gone when their round runs."""
        self._results: deque[RoundResult] = deque()
        self._skipping = False
        self._next_id = 1
        self._crowd = int(self.random.integers(2, 40))
        """Requests that are kept in the server, about."""
        self._prompt_mean, self._output_mean = self.random.uniform(0.02, 0.4, 2) * self._longest
        self._dice: list[float] = []
        self._now = 0.0

    def run(self, rounds: int, check_every: int, tell: Callable[[int], object] = lambda _: None) -> None:
        """`rounds` more, then to the end of all requests; the books are checked every `check_every` rounds."""
        goal = self.rounds + rounds
        while self.rounds < goal:
            before = self.rounds
            self._disturb()
            self._turn(may_fail=True)
            if self.rounds != before:
                if self.rounds % check_every == 0:
                    self.scheduler.check_invariants()
                if self.rounds % 1000 == 0:
                    tell(1000)
        while self.scheduler.has_work or self._queue or self._results:
            self._turn(may_fail=False)
        self.scheduler.check_invariants()
        assert not self.living and not self.spoken, "requests have vanished without a finish"
        assert self.scheduler.snapshot().slots_used == 0

    # -- the server

    def _turn(self, may_fail: bool) -> None:
        """One step of the Router or of the device, in random order."""
        self._now += 0.01 * self._die()
        if self._die() < 0.6:
            while (round_ := self.scheduler.next_round(self._now)) is not None:
                joining = [self.spoken[join.seed, join.choice].tokens for join in round_.joins]
                self._queue.append((round_, joining))
        if self._queue and self._die() < 0.8:
            self._execute(may_fail)
        if self._results and self._die() < 0.8:
            applied = self.scheduler.apply(self._results.popleft())
            self._take(applied.tokens)
            self.rounds += 1
            if applied.resync is not None:
                self._queue.append((Resync(applied.resync), []))

    def _execute(self, may_fail: bool) -> None:
        message, joining = self._queue.popleft()
        if isinstance(message, Resync):
            self._skipping = False
        elif not self._skipping:
            self._skipping = may_fail and self._die() < 0.001
            if self._skipping:
                self.failed += 1
                self._results.append(self.device.fail(message, joining, self._die() < 0.5))
            else:
                self._results.append(self._refuse_some(message, self.device.execute(message, joining)))

    def _refuse_some(self, round_: Round, result: RoundResult) -> RoundResult:
        """Now and then the device cannot go on with a row."""
        if not len(result.token_ids) or self._die() >= 0.002:
            return result
        position = int(self._die() * len(round_.rows))
        return msgspec.structs.replace(result, errors={position: RowError(REFUSAL, "constraint")})

    def _take(self, tokens: RoundTokens | None) -> None:
        if tokens is None:
            return
        for request_id, token in zip(tokens.request_ids, tokens.token_ids, strict=True):
            said = self.spoken[self.living[request_id]]
            assert token == said.tokens[said.prompt_len + said.came], "a token is wrong, lost or doubled"
            said.came += 1
        for finish in tokens.finished:
            said = self.spoken.pop(self.living.pop(finish.request_id))
            assert finish.output_tokens == said.came
            if finish.reason in ("stop", "length"):
                assert (finish.reason, said.came) == (said.reason, said.output_len)
                self.finished += 1
            elif finish.error == REFUSAL:
                assert (finish.reason, finish.error_type) == ("error", "InvalidParameter")
                self.refused += 1
            else:
                assert finish.reason in ("abort", "error")

    # -- clients

    def _disturb(self) -> None:
        if len(self.living) < self._crowd and self._die() < 0.5:
            self._add()
        die = self._die()
        if die < 0.01 and self.living:
            ids = list(self.living)
            self.scheduler.abort(ids[int(self._die() * len(ids))])
        elif die < 0.011:
            self.scheduler.abort(self._next_id + 1000 + int(die * 1e6))  # unknown
        elif die < 0.0115:
            self.scheduler.flush_cache()
        elif die < 0.012:
            self._crowd = 2 + int(self._die() * 40)
        elif die < 0.02:
            self.scheduler.snapshot()
            self._take(self.scheduler.drain_outputs())

    def _add(self) -> None:
        random = self.random
        siblings = 1 if self._die() < 0.9 else 2 + int(self._die() * 2)
        most = int(random.integers(1, self._longest * 2 // 3))
        prompt = self._prompt(self._longest - most)
        ids = list(range(self._next_id, self._next_id + siblings))
        self._next_id += siblings
        seed, done = ids[0], int32([])
        choices = []
        for index, request_id in enumerate(ids):
            said = self._speak(prompt, most)
            if siblings == 1 and said.output_len > 3 and self._die() < 0.05:  # restored after a crash
                said.came = int(self._die() * (said.output_len - 1))
                done = said.tokens[len(prompt) : len(prompt) + said.came]
            self.spoken[seed, index] = said
            self.living[request_id] = seed, index
            choices.append(Choice(request_id, index, done))
        params = SamplingParams(
            n=siblings, max_new_tokens=most, seed=seed, priority=int(self._die() * 3),
            presence_penalty=1.0 if self._die() < 0.1 else 0.0,
        )  # fmt: skip
        try:
            self.scheduler.add(AddRequest(prompt, params, choices), self._now)
        except RequestError:
            for index, request_id in enumerate(ids):
                del self.spoken[seed, index], self.living[request_id]
        self._take(self.scheduler.drain_outputs())

    def _prompt(self, most: int) -> np.ndarray:
        """int32: the beginning of one of a few texts, with an end of its own."""
        length = min(1 + int(self.random.exponential(self._prompt_mean)), most)
        text = self._texts[int(self._die() * len(self._texts))]
        own = int(self._die() * length)
        return np.concatenate([text[: length - own], self.random.integers(1, VOCAB, own, dtype=np.int32)])

    def _speak(self, prompt: np.ndarray, most: int) -> Spoken:
        length = 1 + int(self.random.exponential(self._output_mean))
        outputs = self.random.integers(1, VOCAB, min(length, most) + OVERRUN, dtype=np.int32)
        ends = length <= most
        if ends:
            outputs[length - 1] = EOS
        return Spoken(
            np.concatenate([prompt, outputs]), len(prompt), min(length, most), "stop" if ends else "length"
        )

    def _die(self) -> float:
        """Uniform in [0, 1); drawn many at once."""
        if not self._dice:
            self._dice = self.random.random(4096).tolist()
        return self._dice.pop()


def random_limits(random: np.random.Generator) -> SchedulerConfig:
    def pick(*values: str) -> str:
        return values[int(random.integers(len(values)))]

    longest = int(random.integers(40, 400))
    capacity = int(random.integers(longest, 2 * longest))
    chunk = int(random.integers(4, 60))
    whole = bool(random.random() < 0.2)
    slo = float(random.uniform(0.1, 2.0)) if random.random() < 0.2 else 0.0
    batch = longest + int(random.integers(0, 40)) if whole else chunk + int(random.integers(0, 20))
    options = ServerConfig(
        running_max_req_size=int(random.integers(2, 24)), max_waiting_requests=int(random.integers(5, 60)),
        disable_dynamic_prompt_cache=bool(random.random() >= 0.8),
        schedule_policy=pick("conservative", "aggressive", "past_future", "past_future"),
        round_policy=pick("mixed", "mixed", "prefill_first", "decode_first"),
        router_max_wait_tokens=int(random.integers(0, 8)), max_overtakes=int(random.integers(0, 10)),
        ttft_slo=slo, tpot_slo=slo / 20,
    )  # fmt: skip
    return SchedulerConfig(
        capacity, longest, batch, batch if whole else chunk, [EOS], options,
        worth_waiting=int(random.integers(1, 10)), neighbouring_slots=bool(random.random() < 0.5),
        decode_tokens=int(random.choice([1, 1, 2, 4])),
    )  # fmt: skip


@dataclasses.dataclass
class Outcome:
    rounds: int = 0
    finished: int = 0
    pauses: int = 0
    failed: int = 0
    refused: int = 0
    settings: int = 0
    resident_early: int = 0
    """KiB, when a fifth of the rounds was done."""
    resident_late: int = 0
    seconds: float = 0.0


def soak(rounds: int, check_every: int, seed: int, settings: int = 40, progress: bool = False) -> Outcome:
    """`rounds` in all, divided among `settings` random servers, one after the other."""
    outcome, started = Outcome(), time.monotonic()
    share = -(-rounds // settings)
    with tqdm(total=rounds, unit=" rounds", disable=not progress) as bar:
        for number in range(settings):
            server = Soak(seed * 100_003 + number)
            try:
                server.run(share, check_every, bar.update)
            except BaseException as error:
                error.add_note(f"seed {seed}, server {number}, round {server.rounds}: {server.limits}")
                raise
            outcome.rounds += server.rounds
            outcome.finished += server.finished
            outcome.pauses += server.scheduler.pauses
            outcome.failed += server.failed
            outcome.refused += server.refused
            outcome.settings += 1
            outcome.resident_late = resident_kib()
            if 5 * (number + 1) <= settings or not outcome.resident_early:
                outcome.resident_early = outcome.resident_late
    outcome.seconds = time.monotonic() - started
    return outcome


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description="The scheduler under random everything.")
    parser.add_argument("--rounds", type=int, default=1_000_000)
    parser.add_argument("--check-every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=int, default=40, help="random servers, one after the other")
    options = parser.parse_args()
    print(soak(options.rounds, options.check_every, options.seed, options.settings, progress=True))


if __name__ == "__main__":
    main()

"""The scheduler under any interleaving: slots and rows are never lost or shared, and every request gets its own tokens."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.router_device import Engine, add_request, cut_at_eos, generate_alone, make_limits

from lightllm.errors import PromptTooLong, RequestError
from lightllm.router.admission.output_lengths import OutputLengths
from lightllm.router.admission.schedule_policy import Aggressive, Conservative, PastFuture
from lightllm.router.request import State

VOCAB = 12
NEVER = 10**6
"""A stop token that does not exist: with it, only the scheduler does not know that an output runs to its limit."""
TEXTS = [[1 + i * i % 11 for i in range(30)], [1 + i * i % 11 for i in range(15)] + [12] * 15]


def wrong_past():
    """Nearly all outputs seen had a few tokens: predictions from these fail often."""
    lengths = OutputLengths(window=400, warm_start=0)
    for length in range(1, 16):
        for _ in range(int(1.4 ** (15 - length))):
            lengths.add(length, ended=True)
    return lengths


def turn(request):
    """Siblings have one turn: their seed is the id of the first."""
    return request.priority, request.params.seed


prompts = st.one_of(
    st.lists(st.integers(1, VOCAB), min_size=1, max_size=30),
    # few texts with common beginnings
    st.builds(
        lambda length, tail, text: (TEXTS[text][:length] + tail)[:30],
        st.integers(0, 30), st.lists(st.integers(1, VOCAB), min_size=1, max_size=4), st.integers(0, 1),
    ),
)  # fmt: skip


class SchedulerMachine(RuleBasedStateMachine):
    failures = False
    policy = Conservative
    lengths = OutputLengths
    prompt_cache = True

    @initialize(
        capacity=st.integers(6, 60),
        rows=st.integers(1, 6),
        chunk=st.integers(1, 12),
        decode_room=st.integers(0, 6),
        whole=st.booleans(),
        worth_waiting=st.integers(1, 4),
        round_policy=st.sampled_from(["mixed", "mixed", "prefill_first", "decode_first"]),
        decode_rounds=st.integers(0, 4),
        max_overtakes=st.integers(0, 3),
        neighbours=st.booleans(),
        decode_tokens=st.sampled_from([1, 1, 2, 4]),
    )
    def start(
        self, capacity, rows, chunk, decode_room, whole, worth_waiting, round_policy, decode_rounds, max_overtakes,
        neighbours, decode_tokens,
    ):  # fmt: skip
        batch = capacity if whole else chunk + decode_room
        limits = make_limits(
            max_total_token_num=capacity, max_req_total_len=capacity, running_max_req_size=rows,
            batch_max_tokens=batch, chunked_prefill_size=batch if whole else chunk, worth_waiting=worth_waiting,
            disable_dynamic_prompt_cache=not self.prompt_cache, round_policy=round_policy, router_max_wait_tokens=decode_rounds,
            max_overtakes=max_overtakes, neighbouring_slots=neighbours, decode_tokens=decode_tokens,
        )  # fmt: skip
        self.engine = Engine(limits, VOCAB, self.policy(), self.lengths())
        self.capacity, self.batch, self.decode_tokens = capacity, batch, decode_tokens
        self.max_overtakes = max_overtakes
        self.overtaken = Counter()
        self.messages = {}
        self.aborted = set()
        self.errors_allowed = False
        self.next_id = 1

    @rule(
        prompt=prompts,
        new=st.integers(1, 30),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        restored=st.integers(0, 4),
        penalty=st.booleans(),
        ignore_eos=st.booleans(),
        logprobs=st.sampled_from([-1, -1, -1, 0]),
        priority=st.sampled_from([0, 0, 0, -1, 1]),
        stops=st.booleans(),
        constrained=st.booleans(),
    )
    def add(
        self, prompt, new, n, restored, penalty, ignore_eos, logprobs, priority=0, stops=False, constrained=False
    ):  # fmt: skip
        ids = list(range(self.next_id, self.next_id + n))
        self.next_id += n
        alone = generate_alone(prompt, ids[0], 0, VOCAB, new)
        done = alone[:restored] if n == 1 else []
        if not ignore_eos:
            done = cut_at_eos(done)
        message = add_request(
            ids, prompt, new, done, ignore_eos=ignore_eos, presence_penalty=1.0 if penalty else 0.0,
            prompt_logprobs=logprobs, priority=priority, stop_token_ids=[NEVER] if stops else [],
            regular_constraint="a*" if constrained else "",
        )  # fmt: skip
        total = len(prompt) + new
        try:
            self.engine.add(message)
        except RequestError as error:
            assert total > self.capacity or n > 1
            assert n > 1 or isinstance(error, PromptTooLong)
            return
        assert total <= self.capacity
        for request_id in ids:
            if request_id in self.aborted:
                assert self.engine.finished[request_id].reason == "abort"
            self.messages[request_id] = message

    @rule(back=st.integers(-2, 12))
    def abort(self, back):
        request_id = self.next_id - back
        if request_id > 0:
            self.aborted.add(request_id)
            self.engine.scheduler.abort(request_id)
            self.engine.take(self.engine.scheduler.drain_outputs())

    @rule()
    def plan(self):
        self.plan_fairly()

    def plan_fairly(self):
        """Whoever enters has a better priority than everybody who is paused, or is older, or a sibling; nobody else is passed by more
        than `max_overtakes` requests whose turn is later."""
        scheduler = self.engine.scheduler
        before = set(scheduler._running.requests)
        self.engine.plan()
        turns = [turn(r) for r in scheduler._running.requests.values() if r.id not in before]
        paused = [r for r in scheduler._requests.values() if r.state is State.PAUSED]
        assert len(paused) == scheduler.snapshot().paused
        assert not paused or max(turns, default=(-9, 0)) <= min(map(turn, paused))
        waiting = {turn(r): r for r in scheduler._requests.values() if r.state is State.WAITING}
        for own in waiting:
            self.overtaken[own] += sum(other > own for other in set(turns))
            assert self.overtaken[own] <= self.max_overtakes

    @rule()
    def execute(self):
        self.engine.execute()

    @rule()
    def apply(self):
        self.engine.apply()

    @rule(steps=st.integers(1, 12))
    def turns(self, steps):
        for _ in range(steps):
            self.plan_fairly()
            self.engine.execute()
            self.engine.apply()

    @rule()
    def flush(self):
        self.engine.scheduler.flush_cache()

    @rule(kind=st.sampled_from(["broken", "memory"]))
    def fail(self, kind):
        if self.failures:
            self.errors_allowed = True
            self.engine.execute(kind)

    @rule(row=st.integers(0, 5), kind=st.sampled_from(["constraint", "row", "not_finite"]))
    def refuse(self, row, kind):
        """The device cannot go on with one request of the round."""
        self.engine.refusal = kind
        self.engine.execute(refuse=row)

    @invariant()
    def books_are_right(self):
        if hasattr(self, "engine"):
            self.engine.scheduler.check_invariants()
            state = self.engine.scheduler.snapshot()
            assert state.slots_used >= 0 and state.slots_cached >= 0
            assert state.slots_used + state.slots_cached <= self.capacity
            assert self.engine.device.max_tokens <= self.batch
            if self.policy is Conservative and not self.failures and self.decode_tokens == 1:
                assert state.paused == 0 and not self.engine.scheduler._running.pausing
                # With two rounds in flight a request may have ended that cannot give back its slots yet. The figure of the
                # snapshot may be one from then: it is worked out once in some rounds.
                scheduler = self.engine.scheduler
                peak = scheduler._admission.forecast().peak if scheduler._running.requests else 0
                assert peak <= self.capacity or scheduler.in_flight == 2

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        self.engine.run()
        state = self.engine.scheduler.snapshot()
        assert (state.running, state.waiting, state.paused, state.slots_used) == (0, 0, 0, 0)
        assert set(self.engine.finished) == set(self.messages)
        for request_id, message in self.messages.items():
            self._check_output(request_id, message)
            self._check_cached_tokens(request_id, message)

    def _check_cached_tokens(self, request_id, message):
        """What the device was told to compute of a prompt, and what the answer says of it, are the whole prompt. Of one that
        is restored with outputs the answer says what was cached when it was computed first."""
        finish, seed = self.engine.finished[request_id], message.params.seed
        (choice,) = [c for c in message.choices if c.request_id == request_id]
        index, device = choice.index, self.engine.device
        if len(choice.output_ids):
            assert finish.cached_tokens == choice.cached_tokens
        elif finish.reason in ("stop", "length") and not self.failures and (seed, index) in device.highest:
            computed = device.computed.get((seed, index), 0)
            assert finish.cached_tokens == len(message.prompt_ids) - computed
            assert finish.cached_tokens == self.engine.cached_tokens.get(request_id, 0)

    def _check_output(self, request_id, message):
        finish, output = self.engine.finished[request_id], self.engine.outputs[request_id]
        params = message.params
        (index,) = [c.index for c in message.choices if c.request_id == request_id]
        alone = generate_alone(message.prompt_ids.tolist(), params.seed, index, VOCAB, params.max_new_tokens)
        alone = alone if params.ignore_eos else cut_at_eos(alone)
        assert output == alone[: len(output)]
        if finish.reason in ("stop", "length"):
            assert output == alone
            assert finish.reason == ("stop" if not params.ignore_eos and alone[-1] == 0 else "length")
        elif finish.error == "too complex":
            assert finish.reason == "error"
            assert (params.seed, index) in self.engine.refused
        else:
            assert finish.reason == "error" and self.errors_allowed or request_id in self.aborted
        assert len(output) <= self.engine.refused.get((params.seed, index), len(output))


class FailingMachine(SchedulerMachine):
    failures = True


class NoCacheMachine(SchedulerMachine):
    prompt_cache = False


class CrowdedMachine(SchedulerMachine):
    """Makes requests pause often: several at once, each of which wants more than its share of the memory."""

    @rule(
        count=st.integers(2, 5),
        length=st.integers(1, 6),
        steps=st.integers(0, 40),
        n=st.sampled_from([1, 1, 2]),
    )
    def crowd(self, count, length, steps, n):
        for i in range(count):
            self.add(
                prompt=TEXTS[i % 2][i : i + length], new=max(1, min(30, self.capacity - length)), n=n, restored=0,
                penalty=False, ignore_eos=True, logprobs=-1, stops=True,
            )  # fmt: skip
        self.turns(steps=steps)


class PausingMachine(CrowdedMachine):
    failures = True
    policy = Aggressive


class PausingWithoutCacheMachine(CrowdedMachine):
    prompt_cache = False
    policy = Aggressive


class PastFutureMachine(CrowdedMachine):
    failures = True
    policy = staticmethod(lambda: PastFuture(caution=0.0))
    lengths = staticmethod(wrong_past)


_settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
TestConservative = SchedulerMachine.TestCase
TestConservative.settings = _settings
TestFailing = FailingMachine.TestCase
TestFailing.settings = _settings
TestNoCache = NoCacheMachine.TestCase
TestNoCache.settings = settings(_settings, max_examples=12)
TestCrowded = CrowdedMachine.TestCase
TestCrowded.settings = _settings
TestPausing = PausingMachine.TestCase
TestPausing.settings = _settings
TestPausingWithoutCache = PausingWithoutCacheMachine.TestCase
TestPausingWithoutCache.settings = settings(_settings, max_examples=12)
TestPastFuture = PastFutureMachine.TestCase
TestPastFuture.settings = settings(_settings, max_examples=20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine",
    [SchedulerMachine, FailingMachine, NoCacheMachine, CrowdedMachine, PausingMachine, PausingWithoutCacheMachine,
     PastFutureMachine],
)  # fmt: skip
def test_many_more_interleavings(machine: type[SchedulerMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(_settings, max_examples=1000))

"""The sampler with row state: each parameter against a plain reference, joins and leaves, independence of rows."""

import math

import numpy as np
import pytest
import torch

from lightllm.backend.device import CpuDevice
from lightllm.backend.row_state import RowState
from lightllm.backend.sampler import Sampler, list_top
from lightllm.ops.uniforms import uniforms
from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import JoinRow
from lightllm.sampling_params import SamplingParams

VOCAB = 200
GREEDY = {"temperature": 0.0}


class Bench:
    """Row state and sampler; `step` samples the given rows and keeps their tokens, as a round does."""

    def __init__(self, max_rows=40):
        self.rows = RowState(max_rows, VOCAB, CpuDevice())
        self.sampler = Sampler(self.rows, CpuDevice())

    def join(self, row, history=(1,), prompt_len=1, eos=(), seed=0, choice=0, **params):
        self.rows.join(
            JoinRow(row=row, prompt_len=prompt_len, params=SamplingParams(**params), seed=seed, choice=choice,
                    end_token_ids=list(eos), history_ids=int32(list(history)))
        )  # fmt: skip

    def step(self, logits, rows, positions, masks=None):
        plan, positions = self.sampler.plan(np.array(rows)), np.array(positions)
        sampled = self.sampler.sample(logits.clone(), plan, positions, torch.from_numpy(positions), masks)
        self.rows.keep_tokens(plan.rows_on_device, plan.counted, sampled.token_ids)
        return sampled


def alternatives(sampled):
    """Position -> `TopLogprobs`."""
    found = {}
    for part in sampled.top:
        lists = list_top(part.counts, part.token_ids.numpy(), part.logprobs.numpy())
        found.update(zip(part.positions, lists, strict=True))
    return found


def make_logits(rows=1, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def penalized(logits, history, prompt_len, params):
    """The definition of the penalties, in plain Python, for one row."""
    logits = logits.clone()
    generated, everything = list(history[prompt_len:]), list(history)
    counted = everything if params.input_penalty else generated
    listed = everything if params.input_penalty or params.repetition_counts_prompt else generated
    for token in set(listed):
        value = logits[token]
        value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value = value - counted.count(token) * params.frequency_penalty
        logits[token] = value - (params.presence_penalty if token in counted else 0.0)
    return logits


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"frequency_penalty": 1.5},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 1.7, "repetition_counts_prompt": True, "presence_penalty": 1.0},
        {
            "repetition_penalty": 0.6,
            "frequency_penalty": -0.5,
            "presence_penalty": 0.7,
            "input_penalty": True,
        },
    ],
)
def test_penalties_equal_the_plain_reference_over_many_steps(options):
    prompt = [5, 6, 6, 7]
    history = prompt + [8, 8, 9]  # three tokens were generated before it joins
    params = SamplingParams(**GREEDY, **options)
    bench = Bench()
    bench.join(3, history, len(prompt), **GREEDY, **options)
    logits = make_logits()
    for step in range(300):
        sampled = bench.step(logits, [3], [3 + step])
        expected = penalized(logits[0], history, len(prompt), params)
        assert sampled.token_ids[0] == expected.argmax()
        assert sampled.logprobs[0].item() == pytest.approx(expected.log_softmax(0).max().item(), abs=1e-4)
        history.append(int(sampled.token_ids[0]))


def test_rows_with_and_without_penalties_share_a_batch():
    bench = Bench()
    bench.join(0, **GREEDY)
    bench.join(1, **GREEDY, presence_penalty=2.0)
    bench.join(2, [1, 2, 3], 1, **GREEDY, frequency_penalty=2.0)
    logits = make_logits(3)
    logits[2, 3] = logits[2].max() + 1.0
    sampled = bench.step(logits, [0, 1, 2], [0, 0, 2])
    assert sampled.token_ids[:2].tolist() == logits[:2].argmax(1).tolist()
    assert sampled.token_ids[2] != 3


def test_log_probability_is_after_penalties_and_temperature_and_raw_on_request():
    logits = make_logits()
    history = [1, int(logits.argmax())]
    options = {"temperature": 0.5, "top_k": 3, "presence_penalty": 1.0, "seed": 1}
    bench = Bench()
    bench.join(0, history, 1, **options)
    bench.join(1, history, 1, **options, raw_logprobs=True)
    sampled = bench.step(logits.expand(2, VOCAB), [0, 1], [1, 1])
    token = int(sampled.token_ids[0])
    assert sampled.token_ids[1] == token
    native = penalized(logits[0], history, 1, SamplingParams(presence_penalty=1.0)) / 0.5
    assert sampled.logprobs[0].item() == pytest.approx(native.log_softmax(0)[token].item(), abs=1e-5)
    assert sampled.logprobs[1].item() == pytest.approx(logits[0].log_softmax(0)[token].item(), abs=1e-5)


def test_greedy_log_probability_ignores_the_temperature():
    bench = Bench()
    bench.join(0, do_sample=False, temperature=0.3)
    logits = make_logits()
    expected = logits.log_softmax(1).max().item()
    assert bench.step(logits, [0], [0]).logprobs[0].item() == pytest.approx(expected, abs=1e-5)


def test_who_wants_no_log_probability_gets_the_same_token_and_disturbs_nobody():
    bench = Bench()
    for row, params in enumerate([GREEDY, {"temperature": 0.8, "top_p": 0.9}, {"presence_penalty": 1.0}]):
        bench.join(2 * row, [1, 2], 1, seed=row, **params, raw_logprobs=True)
        bench.join(2 * row + 1, [1, 2], 1, seed=row, **params, raw_logprobs=True, logprobs=-1)
    logits = make_logits(3).repeat_interleave(2, 0)
    sampled = bench.step(logits, list(range(6)), [1] * 6)
    assert sampled.token_ids[::2].tolist() == sampled.token_ids[1::2].tolist()
    expected = logits[::2].log_softmax(1).gather(1, sampled.token_ids[::2, None]).squeeze(1)
    torch.testing.assert_close(sampled.logprobs[::2], expected, atol=1e-5, rtol=1e-5)
    alone = bench.step(logits[1:2], [1], [2])
    assert alone.token_ids[0] == logits[1].argmax() and alone.logprobs.tolist() == [0.0]


def test_alternatives_only_for_rows_that_ask_and_of_the_right_distribution():
    logits = make_logits(3)
    bench = Bench()
    bench.join(0, temperature=2.0, logprobs=4)
    bench.join(1, temperature=2.0)
    bench.join(2, temperature=2.0, logprobs=2, raw_logprobs=True)
    top = alternatives(bench.step(logits, [0, 1, 2], [0, 0, 0]))
    assert sorted(top) == [0, 2]
    expected = (logits[0] / 2).log_softmax(0).topk(4)
    assert top[0].token_ids == expected.indices.tolist()
    assert top[0].logprobs == pytest.approx(expected.values.tolist(), abs=1e-5)
    assert top[2].logprobs == pytest.approx(logits[2].log_softmax(0).topk(2).values.tolist(), abs=1e-5)


def test_alternatives_leave_out_what_cannot_be_sampled():
    bench = Bench()
    bench.join(0, **GREEDY, allowed_token_ids=[4, 9], logprobs=5)
    top = alternatives(bench.step(make_logits(), [0], [0]))
    assert sorted(top[0].token_ids) == [4, 9]
    assert sum(math.exp(value) for value in top[0].logprobs) == pytest.approx(1.0, abs=1e-5)


def test_logit_bias_is_added():
    bench = Bench()
    bench.join(0, **GREEDY, logit_bias={17: 100.0})
    bench.join(1, **GREEDY, logit_bias={17: -100.0, int(make_logits().argmax()): -100.0})
    sampled = bench.step(make_logits().expand(2, VOCAB), [0, 1], [0, 0])
    assert sampled.token_ids.tolist() == [17, make_logits()[0].topk(2).indices[1].item()]


def test_only_allowed_tokens_are_sampled():
    bench = Bench()
    bench.join(0, allowed_token_ids=[3, 50, 199], temperature=5.0)
    seen = {int(bench.step(make_logits(seed=i), [0], [i]).token_ids[0]) for i in range(60)}
    assert seen == {3, 50, 199}


@pytest.mark.parametrize("least", [1, 2, 5])
def test_end_tokens_come_at_the_earliest_as_the_token_that_completes_min_new_tokens(least):
    bench = Bench()
    logits = make_logits()
    logits[0, [10, 11]] = 50.0
    bench.join(0, eos=[10, 11], **GREEDY, min_new_tokens=least, max_new_tokens=9)
    length = 1
    while int(bench.step(logits, [0], [length - 1]).token_ids[0]) not in (10, 11):
        length += 1
    assert length == least


def test_an_end_token_that_is_the_only_allowed_one_beats_min_new_tokens():
    bench = Bench()
    bench.join(0, eos=[10], **GREEDY, min_new_tokens=5, allowed_token_ids=[10])
    sampled = bench.step(make_logits(), [0], [0])
    assert sampled.token_ids[0] == 10 and sampled.logprobs[0] == 0.0


def test_exponential_decay_raises_the_end_token_after_its_start():
    logits = make_logits()
    logits[0, 10] = 1.0
    bench = Bench()
    bench.join(
        0, eos=[10], **GREEDY, exponential_decay_length_penalty=(3, 2.0), logprobs=20, max_new_tokens=100
    )
    best = logits.max().item()
    for position in range(10):
        boosted = 1.0 * 2.0 ** max(position - 3, 0)
        token = int(bench.step(logits, [0], [position]).token_ids[0])
        assert (token == 10) == (boosted > best)
    assert torch.isfinite(bench.step(logits, [0], [100000]).logprobs).all()


def test_random_choice_depends_on_seed_choice_and_position_only():
    logits = make_logits(32, seed=9)
    params = {"temperature": 1.3}
    together = Bench()
    for row in range(32):
        extra = [{}, {"top_p": 0.9}, {"presence_penalty": 0.5}, GREEDY][row % 4]
        together.join(row, seed=row, choice=row % 3, **(params | extra))
    positions = list(range(32))
    batch = together.step(logits, list(range(32)), positions).token_ids.tolist()
    for row in range(0, 32, 5):
        extra = [{}, {"top_p": 0.9}, {"presence_penalty": 0.5}, GREEDY][row % 4]
        alone = Bench()
        alone.join(7, seed=row, choice=row % 3, **(params | extra))
        assert alone.step(logits[row : row + 1], [7], [row]).token_ids.tolist() == [batch[row]]


def test_sampled_token_is_the_inverse_distribution_at_the_philox_number():
    logits = make_logits()
    bench = Bench()
    bench.join(0, seed=123456789012, choice=2, temperature=0.7)
    number = uniforms(torch.tensor([123456789012]), torch.tensor([2]), torch.tensor([5]))[0]
    expected = int(((logits[0].double() / 0.7).softmax(0).cumsum(0) <= number).sum())
    assert bench.step(logits, [0], [5]).token_ids.tolist() == [expected]


def test_a_row_that_is_joined_anew_or_left_keeps_nothing_of_the_former_request():
    bench = Bench()
    everything = {
        "temperature": 3.0, "top_k": 5, "top_p": 0.5, "min_p": 0.1, "presence_penalty": 2.0, "logit_bias": {3: 50.0},
        "allowed_token_ids": [3, 4, 5], "logprobs": 5, "raw_logprobs": True, "prompt_logprobs": 0, "min_new_tokens": 4,
        "exponential_decay_length_penalty": (1, 2.0),
    }  # fmt: skip
    bench.join(0, [1, 2, 3, 4], 2, eos=[9], **everything)
    bench.step(make_logits(), [0], [2])
    bench.join(0, **GREEDY)
    fresh = Bench()
    fresh.join(0, **GREEDY)
    logits = make_logits(seed=3)
    used, new = bench.step(logits, [0], [0]), fresh.step(logits, [0], [0])
    assert used.token_ids.tolist() == new.token_ids.tolist() == [int(logits.argmax())]
    assert used.logprobs.tolist() == new.logprobs.tolist() and used.top == []
    bench.join(1, [1, 2, 3, 4], 2, eos=[9], **everything)
    bench.rows.leave(1)
    held = bench.rows
    for lists in (
        held.end_token_ids,
        held.logit_bias,
        held.allowed_tokens,
        held.prompt_ids,
        held.prompt_logprobs,
    ):
        assert 1 not in lists
    assert held.features[1] == 0 and not held.counts.lists_any(np.array([1])).any()


def test_leaving_a_free_row_is_harmless():
    bench = Bench()
    bench.rows.leave(5)
    bench.join(5, **GREEDY)
    assert bench.step(make_logits(), [5], [0]).token_ids.tolist() == [int(make_logits().argmax())]


def test_token_ids_outside_the_vocabulary_change_nothing():
    bench = Bench()
    bench.join(0, eos=[VOCAB + 5], **GREEDY, logit_bias={VOCAB: 100.0}, min_new_tokens=3)
    assert bench.step(make_logits(), [0], [0]).token_ids.tolist() == [int(make_logits().argmax())]


def test_logits_that_are_not_numbers_disturb_only_their_row():
    bench = Bench()
    bench.join(0, **GREEDY)
    for row, extra in enumerate([{}, {"top_k": 4}, {"top_p": 0.5, "presence_penalty": 1.0}], start=1):
        bench.join(row, seed=row, **extra)
    logits = make_logits(4)
    expected = bench.step(logits, [0, 1, 2, 3], [0] * 4).token_ids.tolist()
    for broken in range(4):
        sick = logits.clone()
        sick[broken] = torch.nan
        zeros = np.zeros(4, dtype=np.int64)
        plan = bench.sampler.plan(np.arange(4))
        again = bench.sampler.sample(sick, plan, zeros, torch.from_numpy(zeros)).token_ids.tolist()
        assert all(0 <= token < VOCAB for token in again)
        assert [t for i, t in enumerate(again) if i not in (broken, 3)] == [
            t for i, t in enumerate(expected) if i not in (broken, 3)
        ]

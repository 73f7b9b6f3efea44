"""What is learned of the time that rounds take: the device's own curve, in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm.router.admission.step_time import StepTimeModel


def device(tokens, held):
    """Llama-7B on an A100."""
    return max(8.4e-3, 57e-6 * tokens) + 0.33e-6 * held + 1e-3


def learned(rounds=2000, seed=0):
    random = np.random.default_rng(seed)
    times = StepTimeModel()
    for _ in range(rounds):
        tokens = int(random.integers(1, 400) + (random.random() < 0.3) * random.integers(0, 4000))
        held = int(random.integers(0, 120_000))
        times.record(tokens, held, device(tokens, held))
    return times


@pytest.mark.parametrize("tokens", [16, 128, 256, 512, 2048, 4000])
@pytest.mark.parametrize("held", [0, 60_000, 120_000])
def test_learned_times_are_the_devices_own(tokens, held):
    assert learned().seconds(tokens, held) == pytest.approx(device(tokens, held), rel=0.12)


@pytest.mark.parametrize("seconds", [0.03, 0.06, 0.1, 0.2])
def test_most_tokens_are_those_that_just_keep_the_time(seconds):
    times = learned()
    most = times.most_tokens(30_000, seconds, 100_000)
    assert most > 0
    assert times.seconds(most, 30_000) <= seconds * 1.0001 < times.seconds(most + 2, 30_000) * 1.001


def test_most_tokens_keep_to_the_limit_and_to_nothing_where_the_held_ones_take_all_the_time():
    times = learned()
    assert times.most_tokens(0, 10.0, 300) == 300
    assert times.most_tokens(120_000, 0.02, 300) == 0


def test_most_held_is_what_the_time_leaves():
    times = learned()
    held = times.most_held(100, 0.04)
    assert times.seconds(100, held) == pytest.approx(0.04)
    assert times.most_held(100, 0.001) == 0.0


def test_before_the_first_round_everything_is_allowed():
    times = StepTimeModel()
    assert not times.known
    assert times.most_tokens(1000, 0.001, 4096) == 4096
    assert times.seconds(100, 100) == 0.0


def test_rounds_grow_in_steps_beyond_what_has_been_seen():
    times = StepTimeModel()
    for _ in range(64):
        times.record(50, 1000, device(50, 1000))
    assert 50 <= times.most_tokens(1000, 1.0, 4096) <= 100


def test_rounds_without_a_time_teach_nothing():
    times = StepTimeModel()
    times.record(100, 100, 0.0)
    assert not times.known


def test_the_same_rounds_give_the_same_prediction():
    assert learned(300, seed=3).seconds(77, 777) == learned(300, seed=3).seconds(77, 777)


def test_a_device_that_gets_slower_is_followed():
    times = learned()
    random = np.random.default_rng(1)
    for _ in range(3000):
        tokens, held = int(random.integers(1, 4000)), int(random.integers(0, 120_000))
        times.record(tokens, held, 2 * device(tokens, held))
    assert times.seconds(1000, 50_000) == pytest.approx(2 * device(1000, 50_000), rel=0.12)

"""The watchdog: requests run, and no token comes."""

import pytest

from lightllm.config import ServerConfig
from lightllm.health.token_watch import TokenWatch, health_timeout


def test_it_fires_while_requests_run_and_nothing_comes():
    watch = TokenWatch(10.0)
    assert watch.check(0, (0, 0), 100.0) == 0
    assert watch.check(2, (0, 0), 150.0) == 0  # idleness before does not count
    assert watch.check(2, (0, 0), 159.5) == 0
    assert watch.check(2, (0, 0), 161.0) == 11
    assert watch.check(2, (0, 1), 162.0) == 0  # a token has come
    assert watch.check(2, (0, 1), 173.0) == 11
    assert watch.check(0, (0, 1), 174.0) == 0  # nothing runs any more
    assert watch.check(1, (0, 1), 183.0) == 0


def test_tokens_of_a_prompt_are_progress():
    watch = TokenWatch(10.0)
    for second in range(100):
        assert watch.check(1, (512 * (second // 9), 0), float(second)) == 0


def test_what_the_whole_machine_stood_still_for_does_not_count():
    watch = TokenWatch(10.0)
    assert watch.check(1, (0, 0), 100.0) == 0
    assert watch.check(1, (0, 0), 500.0, resumed=500.0) == 0
    assert watch.check(1, (0, 0), 511.0, resumed=500.0) == 11


@pytest.mark.parametrize(("options", "seconds"), [({}, 120), ({"tp": 2}, 250), ({"health_timeout": 7.0}, 7)])
def test_by_default_a_round_may_take_all_of_its_time(options, seconds):
    assert health_timeout(ServerConfig(round_timeout=60.0, **options)) == seconds


def test_0_never_fires():
    watch = TokenWatch(health_timeout(ServerConfig(health_timeout=0.0)))
    assert watch.check(1, (0, 0), 1.0) == watch.check(1, (0, 0), 1e6) == 0

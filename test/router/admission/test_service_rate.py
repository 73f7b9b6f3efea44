"""What a request is told that finds the waiting list full."""

from lightllm.router.admission.service_rate import MOST_SECONDS, ServiceRate


def test_the_time_is_that_in_which_those_that_wait_are_served_at_the_rate_of_the_last_seconds():
    rate = ServiceRate()
    for second in range(100):  # 2 a second, then 10
        rate.sample(float(second), 2 * second if second < 50 else 100 + 10 * (second - 50))
    assert rate.retry_after(100, 99.0, 590) == 10
    assert rate.retry_after(5, 99.0, 590) == 1
    assert rate.retry_after(10_000, 99.0, 590) == MOST_SECONDS


def test_as_long_as_nothing_is_known_it_is_a_second_and_when_nothing_is_served_a_minute():
    rate = ServiceRate()
    assert rate.retry_after(100, 5.0, 0) == 1
    rate.sample(5.0, 7)
    assert rate.retry_after(100, 5.5, 7) == 1
    assert rate.retry_after(100, 25.0, 7) == MOST_SECONDS

from lightllm.cluster.breaker import Breaker, Limits


def opened() -> Breaker:
    breaker = Breaker(Limits(failures=3, window=10.0, pause=5.0))
    for moment in (0.0, 1.0, 2.0):
        breaker.failed(moment)
    return breaker


def test_it_opens_after_so_many_failures_in_the_window():
    breaker = Breaker(Limits(failures=3, window=10.0))
    for moment in (0.0, 8.0, 16.0, 24.0):  # never three within ten seconds
        breaker.failed(moment)
    assert breaker.allows(24.0)
    assert not opened().allows(2.5)


def test_a_success_forgets_the_failures_before_it():
    breaker = Breaker(Limits(failures=2))
    breaker.failed(0.0)
    breaker.succeeded()
    breaker.failed(1.0)
    assert breaker.allows(1.0)


def test_one_trial_after_the_pause_closes_it_or_opens_it_again():
    breaker = opened()
    assert breaker.allows(7.0)
    breaker.sending(7.0)
    assert not breaker.allows(7.5)  # one at a time
    breaker.failed(8.0)
    assert not breaker.allows(12.0) and breaker.allows(13.0)
    breaker.sending(13.0)
    breaker.succeeded()
    assert breaker.allows(13.0) and not breaker.is_open


def test_what_was_sent_before_it_opened_does_not_prolong_the_pause():
    breaker = opened()
    breaker.failed(6.0)
    assert breaker.allows(7.0)


def test_a_trial_whose_end_is_never_told_holds_up_for_another_pause_only():
    breaker = opened()
    breaker.sending(7.0)
    assert not breaker.allows(11.0) and breaker.allows(12.0)

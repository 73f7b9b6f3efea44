"""What the Router waits for, and since when."""

from lightllm.router.due import Due


def test_nothing_is_waited_for_while_there_is_no_work():
    due = Due()
    for now in (100.0, 700.0):
        due.work(False, now)
        assert due.round_since == 0
    due.work(True, 700.0)  # ten idle minutes do not count
    assert due.round_since == 700.0


def test_the_time_of_a_round_begins_when_the_one_before_it_has_come():
    due = Due()
    due.work(True, 10.0)
    due.work(True, 15.0)
    assert due.round_since == 10.0
    due.round_came(20.0)
    due.work(True, 25.0)
    assert due.round_since == 20.0
    due.work(False, 26.0)
    due.work(True, 50.0)
    assert due.round_since == 50.0

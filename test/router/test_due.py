"""What the Router waits for, and since when."""

from lightllm.protocol.messages import Echo
from lightllm.router.due import ECHO_SECONDS, Due


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


def test_an_echo_is_sent_behind_text_one_at_a_time_and_not_too_often():
    due = Due()
    assert due.next_echo(10.0) is None  # nothing was sent
    due.text_sent()
    first = due.next_echo(10.0)
    assert first is not None and due.text_since == 10.0
    due.text_sent()
    assert due.next_echo(30.0) is None  # the first one is on its way
    due.echo_came(first)
    assert due.text_since == 0
    assert due.next_echo(30.0) is not None
    assert due.text_since == 30.0


def test_echoes_keep_their_distance_and_strange_ones_count_for_nothing():
    due = Due()
    due.text_sent()
    echo = due.next_echo(10.0)
    due.echo_came(Echo(echo.number + 7))
    assert due.text_since == 10.0
    due.echo_came(echo)
    due.text_sent()
    assert due.next_echo(10.0 + ECHO_SECONDS / 2) is None
    assert due.next_echo(10.0 + ECHO_SECONDS) is not None

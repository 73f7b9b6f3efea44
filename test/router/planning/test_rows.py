"""Which rows requests get."""

from __future__ import annotations

from support.router_device import Engine, add_request, make_limits


def test_a_request_enters_the_lowest_free_row():
    engine = Engine(make_limits(running_max_req_size=3))
    for i, outputs in enumerate([1, 9, 9], 1):
        engine.add(add_request(i, [100 * i, 5, 6], outputs, ignore_eos=True))
    engine.plan(), engine.execute(), engine.apply()
    assert engine.sent[0].rows.tolist() == [0, 1, 2] and list(engine.finished) == [1]
    engine.add(add_request(4, [400, 5, 6], 9, ignore_eos=True))
    engine.plan()
    assert engine.sent[1].rows.tolist() == [1, 2, 0]
    engine.run()


def test_who_finds_no_row_waits_for_one():
    engine = Engine(make_limits(running_max_req_size=2))
    for i in range(1, 6):
        engine.add(add_request(i, [100 * i, 5, 6], 4, ignore_eos=True))
    engine.run()
    assert sorted(engine.finished) == [1, 2, 3, 4, 5]
    assert max(len(round_.rows) for round_ in engine.sent) == 2

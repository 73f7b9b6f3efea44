"""The rounds before the first request are rounds as the Router sends them, of every kind."""

from lightllm.backend.mock_check import RoundChecker
from lightllm.backend.warmup_rounds import PROMPT, ROWS, SLOTS, warmup_rounds


def test_they_are_valid_and_leave_every_row():
    checker = RoundChecker(SLOTS, vocab_size=2)
    rounds = list(warmup_rounds())
    for round in rounds:
        checker.resync(round.seq)
        assert checker.check(round) == ""
    assert sorted(rounds[-1].leaves) == sorted(join.row for round in rounds for join in round.joins)
    assert len(rounds[-1].leaves) == ROWS


def test_there_is_one_of_every_kind():
    rounds = list(warmup_rounds())
    assert any(round.num_decode == 0 and (round.q_len == round.kv_len).all() for round in rounds[:-1])
    mixed = [round for round in rounds if 0 < round.num_decode < len(round.rows)]
    assert any((round.kv_len > round.q_len)[round.num_decode :].any() for round in mixed)
    assert any(round.q_len[round.num_decode :].max() < PROMPT for round in mixed)
    assert {round.num_decode for round in rounds if round.num_decode == len(round.rows) > 0} == {1, 2, 3}


def test_constraints_are_warmed_up_too():
    assert any(join.params.constrained for round in warmup_rounds() for join in round.joins)

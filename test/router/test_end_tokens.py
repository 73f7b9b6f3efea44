from __future__ import annotations

from lightllm.protocol.arrays import int32
from lightllm.router.planning.end_tokens import EndTokens


def test_a_token_counts_as_long_as_one_request_stops_at_it():
    stops = EndTokens()
    tokens = int32([5, 2, 7, 2, 9])
    assert stops.match(tokens) == []
    stops.add(frozenset({2}))
    stops.add(frozenset({2}))
    stops.add(frozenset({2, 9}))
    assert stops.match(tokens) == [1, 3, 4]
    stops.remove(frozenset({2, 9}))
    stops.remove(frozenset({2}))
    assert stops.match(tokens) == [1, 3]
    stops.remove(frozenset({2}))
    assert stops.match(tokens) == []

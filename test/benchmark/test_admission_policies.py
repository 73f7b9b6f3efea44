"""The comparison of admission policies on a small scale: the order that the policies exist for."""

from __future__ import annotations

from benchmark.admission_policies import POLICIES, Workload, measure


def test_past_future_fills_memory_better_than_conservative_and_pauses_less_than_aggressive():
    workload = Workload("small", prompt=20, output=20, sigma=0.7, max_new_tokens=200)
    conservative, aggressive, past_future = (measure(p, workload, 1000, 2000, seed=0) for p in POLICIES)
    assert conservative.pauses == 0
    assert past_future.batch > 1.5 * conservative.batch
    assert past_future.throughput > conservative.throughput
    assert past_future.pauses < 0.25 * aggressive.pauses
    assert measure("past_future", workload, 1000, 2000, seed=0) == past_future

"""The policies by the names that `--dispatch_method` takes."""

from __future__ import annotations

import random
from collections.abc import Callable

from lightllm.cluster.dispatch.consistent_hash import ConsistentHash
from lightllm.cluster.dispatch.kv_aware import KvAware
from lightllm.cluster.dispatch.policy import Policy
from lightllm.cluster.dispatch.prefix_aware import PrefixAware
from lightllm.cluster.dispatch.simple import LeastTokens, Lottery, PowerOfTwo, RoundRobin, ShortestQueue

POLICIES: dict[str, Callable[[random.Random], Policy]] = {
    "prefix_aware": PrefixAware,
    "kv_aware": KvAware,
    "lottery": Lottery,
    "shortest_queue": ShortestQueue,
    "round_robin": RoundRobin,
    "power_of_two": PowerOfTwo,
    "least_tokens": LeastTokens,
    "consistent_hash": ConsistentHash,
}


def make_policy(name: str, seed: int | None = None) -> Policy:
    """seed: of its random choices; None: another one every time."""
    return POLICIES[name](random.Random(seed))

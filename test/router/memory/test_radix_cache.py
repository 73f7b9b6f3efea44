"""The prefix cache against a plain dict of prefixes."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightllm.protocol.arrays import int32
from lightllm.router.memory.radix_cache import RadixCache, common_length


def add(cache: RadixCache, tokens: list[int], first_slot: int, seq: int | None = None):
    """As a request does that leaves or, with `seq`, one whose prefill that round computes, and that leaves then."""
    slots = int32(range(first_slot, first_slot + len(tokens)))
    if seq is None:
        return cache.insert(int32(tokens), slots)
    node, known = cache.match(int32(tokens))
    if known < len(tokens):
        cache.lock(node)
        node = cache.append(node, int32(tokens[known:]), slots[known:], seq)
        cache.unlock(node)
    return node, known


def slots_of(cache: RadixCache, tokens: list[int]) -> list[int]:
    node, length = cache.match(int32(tokens))
    slots = cache.path_slots(node)
    assert len(slots) == length
    return slots.tolist()


def test_the_longest_prefix_is_found_also_when_it_ends_inside_a_node():
    cache = RadixCache()
    add(cache, [1, 2, 3, 4], 10)
    assert slots_of(cache, [1, 2, 3, 4, 5]) == [10, 11, 12, 13]
    assert slots_of(cache, [1, 2, 9]) == [10, 11]
    assert slots_of(cache, [1, 2, 3, 4]) == [10, 11, 12, 13]
    assert slots_of(cache, [2]) == [] and slots_of(cache, []) == []
    assert cache.check([]) == []


def test_inserting_what_is_known_keeps_the_old_slots_and_says_how_many():
    cache = RadixCache()
    add(cache, [1, 2, 3], 10)
    assert add(cache, [1, 2, 3], 20)[1] == 3
    assert add(cache, [1, 2, 7, 8], 30)[1] == 2
    assert slots_of(cache, [1, 2, 7, 8]) == [10, 11, 32, 33]
    assert cache.tokens == 5


def test_a_lock_stays_on_the_same_prefix_when_its_node_is_split():
    cache = RadixCache()
    node, _ = add(cache, [1, 2, 3, 4], 10)
    cache.lock(node)
    add(cache, [1, 2, 9], 20)
    assert cache.path_slots(node).tolist() == [10, 11, 12, 13]
    assert cache.evict(100).tolist() == [22]
    cache.unlock(node)
    assert sorted(cache.evict(100).tolist()) == [10, 11, 12, 13]
    assert cache.tokens == len(list(cache.nodes())) == 0 and cache.check([]) == []


def test_a_reader_takes_its_lock_along_to_what_is_appended():
    cache = RadixCache()
    node, _ = add(cache, [1, 2], 10)
    cache.lock(node)
    leaf = cache.append(node, int32([3, 4]), int32([12, 13]), 5)
    assert cache.path_slots(leaf).tolist() == [10, 11, 12, 13] and leaf.seq == 5
    assert cache.evictable == 0 and cache.check([leaf]) == []
    cache.unlock(leaf)
    assert cache.evictable == 4 and cache.check([]) == []
    assert cache.take_back(5).tolist() == [12, 13]


def test_the_least_recently_used_leaf_goes_first_from_its_end():
    cache = RadixCache()
    nodes = [add(cache, [i, i, i], 10 * i)[0] for i in (1, 2, 3)]
    cache.lock(nodes[0])
    cache.unlock(nodes[0])
    assert cache.evict(2).tolist() == [21, 22]
    assert slots_of(cache, [2, 2, 2]) == [20]
    assert cache.evict(2).tolist() == [20, 32]
    assert cache.evict(100).tolist() == [30, 31, 10, 11, 12]


def test_a_failed_round_takes_back_its_own_and_what_hangs_on_it():
    cache = RadixCache()
    add(cache, [1, 2], 10)
    add(cache, [1, 2, 3, 4], 20, seq=5)
    add(cache, [1, 2, 3, 4, 5], 30, seq=6)
    add(cache, [1, 2, 3, 9], 40)  # confirmed itself, but behind a token that is not
    assert sorted(cache.take_back(5).tolist()) == [22, 23, 34, 43]
    assert slots_of(cache, [1, 2, 3, 4]) == [10, 11] and cache.check([]) == []


def test_a_confirmed_round_is_not_taken_back():
    cache = RadixCache()
    add(cache, [1, 2, 3], 10, seq=5)
    add(cache, [1, 2, 3, 4], 20, seq=6)
    node, _ = cache.match(int32([1, 2, 3, 4]))
    assert cache.survivor(node, 6)[1] == 1
    assert cache.take_back(6).tolist() == [23]
    assert slots_of(cache, [1, 2, 3, 4]) == [10, 11, 12]


def test_what_was_evicted_before_its_round_failed_is_given_back_once():
    cache = RadixCache()
    add(cache, [1, 2, 3], 10, seq=5)
    assert cache.evict(100).tolist() == [10, 11, 12]
    assert cache.take_back(5).tolist() == []


def test_evicting_costs_no_walk_of_the_tree():
    """Ten thousand leaves, evicted one token at a time: a walk each would take minutes."""
    cache = RadixCache()
    for i in range(10_000):
        add(cache, [i, 1, 2], 3 * i)
    start = time.process_time()
    for _ in range(30_000):
        assert len(cache.evict(1)) == 1
    assert time.process_time() - start < 10
    assert cache.tokens == 0 and len(cache._leaves) < 100


def test_stale_heap_entries_do_not_pile_up():
    cache = RadixCache()
    node, _ = add(cache, [1, 2, 3], 0)
    for _ in range(10_000):
        cache.lock(node)
        cache.unlock(node)
    assert len(cache._leaves) < 100 and cache.evict(3).tolist() == [0, 1, 2]


def test_common_length():
    assert common_length(int32([1, 2, 3]), int32([1, 2, 4])) == 2
    assert common_length(int32([1, 2]), int32([1, 2, 4])) == 2
    assert common_length(int32([]), int32([1])) == common_length(int32([5]), int32([1])) == 0


class CacheMachine(RuleBasedStateMachine):
    """The model: every cached prefix (a tuple of tokens) -> the slot of its last token."""

    tokens = st.lists(st.integers(0, 2), max_size=9)

    def __init__(self):
        super().__init__()
        self.cache = RadixCache()
        self.model: dict[tuple[int, ...], int] = {}
        self.readers: list[tuple[object, tuple[int, ...]]] = []
        self.rounds: dict[tuple[int, ...], int] = {}
        self.next_slot = 0
        self.seq = self.confirmed = 0

    def known(self, tokens):
        return max(i for i in range(len(tokens) + 1) if not i or tuple(tokens[:i]) in self.model)

    def read(self):
        return set(self.locks())

    def locks(self):
        """Prefix -> how often it is locked."""
        return Counter(tokens[: i + 1] for _, tokens in self.readers for i in range(len(tokens)))

    @rule(tokens=tokens, confirmed=st.booleans())
    def insert(self, tokens, confirmed):
        seq = -1 if confirmed else self.seq
        _, known = add(self.cache, tokens, self.next_slot, None if confirmed else seq)
        assert known == self.known(tokens)
        for i in range(known, len(tokens)):
            prefix = tuple(tokens[: i + 1])
            self.model[prefix] = self.next_slot + i
            self.rounds[prefix] = max(seq, self.rounds.get(prefix[:-1], -1))
        self.next_slot += len(tokens)

    @rule(tokens=tokens)
    def match(self, tokens):
        length, read, _ = self.cache.peek(int32(tokens))
        node, matched = self.cache.match(int32(tokens))
        assert matched == length == self.known(tokens)
        prefixes = [tuple(tokens[: i + 1]) for i in range(matched)]
        assert self.cache.path_slots(node).tolist() == [self.model[p] for p in prefixes]
        assert read == len(set(prefixes) & self.read())

    @rule(tokens=tokens)
    def lock(self, tokens):
        node, matched = self.cache.match(int32(tokens))
        self.cache.lock(node)
        self.readers.append((node, tuple(tokens[:matched])))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def unlock(self, data):
        node, _ = self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1)))
        self.cache.unlock(node)

    @rule(count=st.integers(0, 12))
    def evict(self, count):
        before, evictable = set(self.model.values()), self.cache.evictable
        freed = set(self.cache.evict(count).tolist())
        assert len(freed) == min(count, evictable) and freed <= before
        self.drop(freed)

    @rule()
    def next_round(self):
        self.seq += 1

    @precondition(lambda self: self.seq)
    @rule()
    def confirm(self):
        self.confirmed = self.seq

    @rule(back=st.integers(0, 3))
    def fail(self, back):
        first = max(self.confirmed, self.seq - back)
        for i, (node, tokens) in enumerate(self.readers):
            survivor, lost = self.cache.survivor(node, first)
            if lost:
                self.cache.lock(survivor)
                self.cache.unlock(node)
                self.readers[i] = (survivor, tokens[: len(tokens) - lost])
        void = {slot for prefix, slot in self.model.items() if self.rounds[prefix] >= first}
        assert set(self.cache.take_back(first).tolist()) == void
        self.drop(void)
        self.seq += 1

    def drop(self, slots):
        for prefix in [p for p, slot in self.model.items() if slot in slots]:
            del self.model[prefix], self.rounds[prefix]

    @invariant()
    def tree_is_the_model(self):
        assert self.cache.check([node for node, _ in self.readers]) == []
        assert sorted(self.cache.all_slots().tolist()) == sorted(self.model.values())
        assert self.cache.evictable == len(set(self.model) - self.read())
        assert all(p[:-1] in self.model for p in self.model if len(p) > 1)
        assert self.read() <= set(self.model)
        locks = self.locks()
        for node, tokens in self.readers:
            assert self.cache.unshared(node) == sum(locks[tokens[: i + 1]] == 1 for i in range(len(tokens)))


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=80, stateful_step_count=50, deadline=None, database=None)

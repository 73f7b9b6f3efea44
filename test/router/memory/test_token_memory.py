"""Slots and rows: every one in exactly one place, and neighbours where the device gains from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightllm.router.memory.token_memory import TokenMemory


def is_one_run(slots: np.ndarray) -> bool:
    return bool((np.diff(slots) == 1).all())


def take(memory: TokenMemory, row: int, count: int) -> np.ndarray:
    return memory.take(np.array([row]), np.array([count]), count)


def on_a_cpu(capacity: int, rows: int) -> TokenMemory:
    return TokenMemory(capacity, rows, neighbours=True)


both = pytest.mark.parametrize("neighbours", [False, True])


def test_requests_that_grow_side_by_side_stay_contiguous():
    memory = on_a_cpu(1000, 4)
    for row in range(4):
        memory.open(row, 200)
        take(memory, row, 10)
    rows, ones = np.arange(4), np.ones(4, dtype=np.int32)
    for _ in range(190):
        memory.take(rows, ones, 4)
    assert all(is_one_run(memory.slots(row)) and memory.held(row) == 200 for row in range(4))
    assert memory.free == 200


def test_rows_that_take_several_at_once_stay_contiguous():
    memory = on_a_cpu(1000, 3)
    for row in range(3):
        memory.open(row, 200)
        take(memory, row, 5)
    for _ in range(20):
        slots = memory.take(np.array([2, 0, 1]), np.array([1, 4, 2]), 7)
        assert slots[0] == memory.slots(2)[-1]
        assert slots[1:5].tolist() == memory.slots(0)[-4:].tolist()
        assert slots[5:].tolist() == memory.slots(1)[-2:].tolist()
    assert all(is_one_run(memory.slots(row)) for row in range(3)) and memory.check() == []


@both
def test_what_a_row_expects_does_not_keep_others_from_the_memory(neighbours):
    memory = TokenMemory(100, 2, neighbours=neighbours)
    memory.open(0, 100)
    take(memory, 0, 10)
    memory.open(1, 90)
    assert len(take(memory, 1, 90)) == 90
    assert memory.free == 0 and memory.check() == []


def test_the_smallest_run_that_fits_is_taken():
    memory = on_a_cpu(100, 5)
    for row, size in enumerate((45, 5, 30, 15, 5)):
        memory.open(row, size)
        take(memory, row, size)
    before = memory.slots(2).tolist()
    memory.release(0)
    memory.release(2)
    memory.open(2, 28)
    assert set(take(memory, 2, 28).tolist()) < set(before)


def test_a_row_that_finds_no_run_long_enough_begins_in_the_middle_of_the_longest():
    memory = on_a_cpu(100, 2)
    memory.open(0, 100)
    assert take(memory, 0, 10).tolist() == list(range(10))
    memory.open(1, 100)
    assert take(memory, 1, 10).tolist() == list(range(50, 60))
    assert is_one_run(np.concatenate([memory.slots(0), take(memory, 0, 40)]))


def test_rows_that_have_run_into_others_go_on_apart():
    memory = on_a_cpu(90, 4)
    for row in range(3):
        memory.open(row, 10)
        take(memory, row, 10)
    slots = memory.take(np.arange(3), np.ones(3, dtype=np.int32), 3)
    assert sorted(np.diff(np.sort(slots)) > 5) == [True, True] or is_one_run(memory.slots(0))
    assert memory.check() == []


@both
def test_scattered_memory_is_used_to_the_last_slot(neighbours):
    memory = TokenMemory(40, 21, neighbours=neighbours)
    for row in range(20):
        memory.open(row, 2)
        take(memory, row, 2)
    for row in range(0, 20, 2):
        memory.release(row)
    memory.open(20, 20)
    assert len(set(take(memory, 20, 20).tolist())) == 20
    assert memory.free == 0 and memory.check() == []
    with pytest.raises(RuntimeError, match="1 slots wanted, 0 free"):
        take(memory, 20, 1)


@both
def test_slots_given_back_are_free_and_taken_again_in_order(neighbours):
    memory = TokenMemory(20, 2, neighbours=neighbours)
    memory.open(0, 10)
    memory.open(1, 4)
    take(memory, 0, 4)
    take(memory, 1, 4)
    take(memory, 0, 3)
    before = memory.slots(0).tolist()
    memory.give_back(0, 5)
    assert memory.slots(0).tolist() == before[:2] and memory.check() == []
    assert take(memory, 0, 2).tolist() == before[2:4]


@both
@pytest.mark.parametrize("own", [4, 0])
def test_a_row_may_begin_again_as_often_as_it_must(own, neighbours):
    memory = TokenMemory(40, 1, 10, neighbours)
    memory.open(0, 10)
    for _ in range(3):  # what it donated was never computed
        donated = take(memory, 0, 6)
        memory.donate(0, 6)
        if own:
            take(memory, 0, own)
        memory.give_back(0, own)
        memory.reclaim(donated)
        assert memory.free == 40 and memory.check() == []
    assert len(set(take(memory, 0, 10).tolist())) == 10


@both
def test_problems_are_found(neighbours):
    memory = TokenMemory(20, 2, neighbours=neighbours)
    memory.open(0, 5)
    slots = take(memory, 0, 5)
    assert "owned twice" in memory.check(slots[:1])[-1]
    memory.open(1, 5)
    memory._table[0, 1] = memory._table[0, 0]
    assert any("lost" in problem for problem in memory.check())


@both
def test_a_slot_that_is_free_while_a_row_holds_it_is_found(neighbours):
    memory = TokenMemory(20, 1, neighbours=neighbours)
    memory.open(0, 5)
    memory._free.add(take(memory, 0, 5)[2:4])
    assert memory.check() == [f"2 slots are owned twice, the first is {memory.slots(0)[2:4].min()}"]


def test_a_slot_that_is_freed_twice_is_found():
    memory = TokenMemory(20, 1)
    memory.open(0, 5)
    first = take(memory, 0, 5)[:1]
    memory.release(0)
    memory._free._stack[0] = first[0]  # in the place of another one
    assert [problem.split(", ")[0] for problem in memory.check()] == [
        "1 slots are lost",
        "1 slots are owned twice",
    ]


def test_a_row_whose_slots_were_all_donated_goes_on_where_it_was():
    memory = on_a_cpu(100, 2)
    memory.open(0, 8)
    slots = take(memory, 0, 4)
    memory.donate(0, 4)
    assert memory.held(0) == 0 and memory.cached == 4 and memory.free == 96
    assert take(memory, 0, 2).tolist() == [slots[-1] + 1, slots[-1] + 2]


@both
def test_released_slots_that_are_kept_are_cached_until_they_are_reclaimed(neighbours):
    memory = TokenMemory(20, 1, neighbours=neighbours)
    memory.open(0, 6)
    slots = take(memory, 0, 6)
    memory.release(0, 2, 5)
    assert (memory.used, memory.cached, memory.free) == (0, 3, 17)
    assert memory.check(slots[2:5]) == [] and memory.check() != []
    memory.reclaim(slots[2:5])
    assert memory.free == 20 and memory.check() == []


def test_on_a_gpu_slots_that_were_freed_last_are_taken_first_and_in_order():
    memory = TokenMemory(100, 3)
    memory.open(0, 96)
    slots = take(memory, 0, 96)
    memory.donate(0, 96)
    memory.open(1, 50)
    memory.reclaim(slots[40:44])
    memory.reclaim(slots[10:13])
    assert take(memory, 1, 3).tolist() == [10, 11, 12]
    assert take(memory, 1, 8).tolist() == [40, 41, 42, 43, 96, 97, 98, 99]
    assert memory.free == 0 and memory.check(np.setdiff1d(slots, memory.slots(1))) == []


class MemoryMachine(RuleBasedStateMachine):
    """Against plain lists of slots."""

    ROWS = 6
    CAPACITY = 40

    def __init__(self):
        super().__init__()
        self.owned: dict[int, list[int]] = {}
        self.cached: list[int] = []

    @initialize(neighbours=st.booleans())
    def begin(self, neighbours):
        self.memory = TokenMemory(self.CAPACITY, self.ROWS, 10_000, neighbours)

    @rule(row=st.integers(0, ROWS - 1), expected=st.integers(1, 400))
    def open(self, row, expected):
        if row not in self.owned:
            self.memory.open(row, expected)
            self.owned[row] = []

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), count=st.integers(1, 100))
    def take(self, data, count):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        if self.memory.free:
            self.owned[row] += take(self.memory, row, min(count, self.memory.free)).tolist()

    @rule(mask=st.integers(1, 2**ROWS - 1), counts=st.lists(st.integers(1, 4), min_size=ROWS, max_size=ROWS))
    def take_some_each(self, mask, counts):
        rows = [row for row in sorted(self.owned) if mask >> row & 1][: self.memory.free]
        counts = counts[: len(rows)] if sum(counts[: len(rows)]) <= self.memory.free else [1] * len(rows)
        if rows:
            slots = self.memory.take(np.array(rows), np.array(counts), sum(counts)).tolist()
            for row, count in zip(rows, counts, strict=True):
                self.owned[row] += slots[:count]
                del slots[:count]
            assert not slots

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), count=st.integers(1, 10))
    def give_back(self, data, count):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        count = min(count, len(self.owned[row]))
        if count:
            self.memory.give_back(row, count)
            del self.owned[row][-count:]

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        self.memory.release(row)
        del self.owned[row]

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release_but_keep_some(self, data):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        owned = self.owned.pop(row)
        end = data.draw(st.integers(0, len(owned)))
        start = data.draw(st.integers(0, end))
        self.memory.release(row, start, end)
        self.cached += owned[start:end]

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def donate(self, data):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        count = data.draw(st.integers(0, len(self.owned[row])))
        self.memory.donate(row, count)
        self.cached += self.owned[row][:count]
        del self.owned[row][:count]

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def reclaim(self, data):
        count = data.draw(st.integers(0, len(self.cached)))
        chosen = data.draw(st.permutations(self.cached))[:count]
        self.memory.reclaim(np.array(chosen, dtype=np.int32))
        self.cached = [slot for slot in self.cached if slot not in chosen]

    @invariant()
    def books_are_right(self):
        assert self.memory.check(np.array(self.cached, dtype=np.int32)) == []
        slots = self.cached + [slot for owned in self.owned.values() for slot in owned]
        assert len(set(slots)) == len(slots) and all(0 <= slot < self.CAPACITY for slot in slots)
        assert self.memory.free == self.CAPACITY - len(slots)
        for row, owned in self.owned.items():
            assert self.memory.slots(row).tolist() == owned


class LargerMemoryMachine(MemoryMachine):
    """Where most contexts are one run."""

    CAPACITY = 400


_settings = settings(max_examples=30, stateful_step_count=50, deadline=None, database=None)
TestMemory = MemoryMachine.TestCase
TestMemory.settings = _settings
TestLargerMemory = LargerMemoryMachine.TestCase
TestLargerMemory.settings = _settings

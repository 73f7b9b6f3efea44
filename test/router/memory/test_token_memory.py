"""Slots and rows: contiguous where possible, every one in exactly one place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lightllm.router.memory.free_runs import FreeRuns
from lightllm.router.memory.token_memory import RowMemory, TokenMemory


def is_one_run(slots: np.ndarray) -> bool:
    return bool((np.diff(slots) == 1).all())


def test_requests_that_grow_side_by_side_stay_contiguous():
    memory = TokenMemory(1000, 4)
    for row in range(4):
        memory.open(row, 200)
        memory.take(row, 10)
    for _ in range(190):
        memory.take_one_each(np.arange(4, dtype=np.int32))
    assert all(is_one_run(memory.slots(row)) and memory.held(row) == 200 for row in range(4))
    assert memory.free == 200


def test_a_claim_does_not_keep_others_from_the_memory():
    memory = TokenMemory(100, 2)
    memory.open(0, 100)
    memory.take(0, 10)
    memory.open(1, 90)
    assert len(memory.take(1, 90)) == 90
    assert memory.free == 0 and memory.problems() == []


def test_the_smallest_run_that_fits_is_taken():
    memory = TokenMemory(100, 5)
    for row, size in enumerate((30, 5, 20, 5)):
        memory.open(row, size)
        memory.take(row, size)
    memory.release(0)
    memory.release(2)
    memory.open(4, 18)
    assert memory.take(4, 18).tolist() == list(range(35, 53))


def test_a_run_is_continued_before_another_is_begun():
    memory = TokenMemory(50, 2)
    memory.open(0, 5)
    memory.take(0, 5)
    assert memory.take(0, 3).tolist() == [5, 6, 7]


def test_scattered_memory_is_used_to_the_last_slot():
    memory = TokenMemory(40, 21)
    for row in range(20):
        memory.open(row, 2)
        memory.take(row, 2)
    for row in range(0, 20, 2):
        memory.release(row)
    memory.open(20, 20)
    assert len(set(memory.take(20, 20).tolist())) == 20
    assert memory.free == 0 and memory.problems() == []
    with pytest.raises(RuntimeError, match="1 slots wanted, 0 free"):
        memory.take(20, 1)


def test_slots_given_back_are_free_and_taken_again_in_order():
    memory = TokenMemory(20, 2)
    memory.open(0, 4)
    memory.open(1, 4)
    memory.take(0, 4)
    memory.take(1, 4)
    memory.take(0, 3)
    before = memory.slots(0).tolist()
    memory.give_back(0, 5)
    assert memory.slots(0).tolist() == before[:2] and memory.problems() == []
    assert memory.take(0, 2).tolist() == before[2:4]


@pytest.mark.parametrize("own", [4, 0])
def test_a_row_may_begin_again_as_often_as_it_must(own):
    memory = TokenMemory(40, 1, max_len=10)
    memory.open(0, 10)
    for _ in range(3):  # what it ceded was never computed
        ceded = memory.take(0, 6)
        memory.cede(0, 6)
        memory.take(0, own)
        memory.give_back(0, own)
        memory.reclaim(ceded)
        assert memory.free == 40 and memory.problems() == []
    assert len(set(memory.take(0, 10).tolist())) == 10


def test_rows_are_given_out_lowest_first():
    rows = RowMemory(3)
    assert [rows.take(), rows.take()] == [0, 1]
    rows.release(0)
    assert rows.take() == 0 and rows.free == 1


def test_neighbouring_free_runs_are_merged():
    runs = FreeRuns(10)
    runs.take_first(10, 1)
    assert list(runs) == [] and runs.total == runs.longest() == 0
    runs.add_slots(np.array([5, 4]))
    runs.add(np.array([0, 8]), np.array([2, 10]))
    assert list(runs) == [(0, 2), (4, 6), (8, 10)]
    runs.add_slots(np.array([6, 3, 7, 2]))
    assert list(runs) == [(0, 10)] and runs.total == runs.longest() == 10


def crumbled() -> FreeRuns:
    """Of 64 slots [0, 3), [5, 8), [14, 33) and [40, 64) are free: four whole blocks of 8."""
    runs = FreeRuns(64)
    runs.take_first(64, 1)
    runs.add(np.array([0, 5, 14, 40]), np.array([3, 8, 33, 64]))
    return runs


def test_blocks_are_whole_and_some_are_cut_for_later():
    runs = crumbled()
    runs.cut_blocks(2, 8)
    assert runs.total == 49 and runs.has_blocks(2)
    starts, size = runs.take_blocks(2)
    assert starts.tolist() == [16, 24] and size == 8 and runs.total == 33
    assert list(runs) == [(0, 3), (5, 8), (14, 16), (32, 33), (40, 64)]


def test_where_there_are_not_enough_blocks_they_are_half_as_long():
    runs = crumbled()
    runs.cut_blocks(7, 8)
    starts, size = runs.take_blocks(7)
    assert size == 4 and starts.tolist() == [16, 20, 24, 28, 40, 44, 48]
    runs.join_blocks()
    runs.cut_blocks(21, 8)
    assert runs.take_blocks(21)[1] == 1 and runs.total == 0 and list(runs) == []


def test_a_wish_that_no_block_serves_has_those_cut_for_later_joined_again():
    memory = TokenMemory(64, 3)
    memory._runs = crumbled()
    memory._runs.cut_blocks(1, 8)
    memory.used = 64 - 49
    memory.open(0, 49)
    assert len(set(memory.take(0, 49).tolist())) == 49 and memory.free == 0


def test_problems_are_found():
    memory = TokenMemory(20, 2)
    memory.open(0, 5)
    memory.take(0, 5)
    memory._runs.add_slots(np.arange(3))
    assert "owned twice" in memory.problems()[0]


def test_a_row_whose_slots_were_all_ceded_goes_on_where_it_was():
    memory = TokenMemory(100, 2)
    memory.open(0, 4)
    memory.take(0, 4)
    memory.cede(0, 4)
    assert memory.held(0) == 0 and memory.cached == 4 and memory.free == 96
    assert memory.take(0, 2).tolist() == [4, 5]


def test_released_slots_that_are_kept_are_cached_until_they_are_reclaimed():
    memory = TokenMemory(20, 1)
    memory.open(0, 6)
    slots = memory.take(0, 6)
    memory.release(0, 2, 5)
    assert (memory.used, memory.cached, memory.free) == (0, 3, 17)
    assert memory.problems(slots[2:5]) == [] and memory.problems() != []
    memory.reclaim(slots[2:5])
    assert memory.free == 20 and memory.problems() == []


def test_a_row_that_finds_no_run_long_enough_has_cached_slots_evicted():
    cached = [np.arange(start, start + 50, dtype=np.int32) for start in range(0, 400, 50)]
    memory = TokenMemory(
        400,
        10,
        400,
        lambda count: cached.pop(0) if cached else np.zeros(0, np.int32),
        lambda: sum(map(len, cached)),
    )
    for row in range(8):
        memory.open(row, 50)
        memory.take(row, 50)
    for row in range(8):
        memory.release(row, 0, 50)
    memory.reclaim(cached.pop(0))
    memory.open(8, 120)
    assert memory.take(8, 30).tolist() == list(range(30))  # one piece of memory is enough to begin with
    memory.reclaim(cached.pop(0))
    memory.open(9, 120)
    assert memory.take(9, 60).tolist() == list(range(32, 92))
    assert is_one_run(memory.slots(8)) and is_one_run(memory.slots(9))
    assert memory.problems(np.concatenate(cached)) == []


def test_a_row_that_finds_only_single_slots_takes_no_more_than_it_needs():
    memory = TokenMemory(128, 2)
    memory.open(0, 128)
    slots = memory.take(0, 128)
    memory.release(0, 0, 128)
    memory.reclaim(slots[::2])
    memory.open(1, 100)
    assert len(memory.take(1, 1)) == 1 and memory.held(1) == 1
    assert memory.problems(slots[1::2]) == [] and memory.free == 63


def test_where_hardly_anything_is_left_nobody_claims_what_others_need():
    memory = TokenMemory(100, 3)
    memory.open(0, 80)
    memory.take(0, 80)
    memory.open(1, 50)
    assert memory.take(1, 3).tolist() == [80, 81, 82]
    memory.open(2, 17)
    assert memory.take(2, 10).tolist() == list(range(83, 93))
    assert memory.take_one_each(np.array([1, 2])).tolist() == [93, 94]
    assert memory.problems() == []


def test_where_hardly_anything_is_left_slots_that_were_freed_last_are_taken_first_and_in_order():
    memory = TokenMemory(100, 3)
    memory.open(0, 96)
    slots = memory.take(0, 96)
    memory.cede(0, 96)
    memory.open(1, 50)
    memory.reclaim(slots[40:44])
    memory.reclaim(slots[10:13])
    assert memory.take(1, 2).tolist() == [10, 11]
    assert memory.take_one_each(np.array([1])).tolist() == [12]
    assert memory.take(1, 8).tolist() == [40, 41, 42, 43, 96, 97, 98, 99]
    assert memory.free == 0 and memory.problems(np.setdiff1d(slots, memory.slots(1))) == []


class MemoryMachine(RuleBasedStateMachine):
    """Against plain lists of slots."""

    ROWS = 6
    CAPACITY = 40

    def __init__(self):
        super().__init__()
        self.memory = TokenMemory(self.CAPACITY, self.ROWS, 10_000, self.evict, lambda: len(self.cached))
        self.owned: dict[int, list[int]] = {}
        self.cached: list[int] = []

    def evict(self, count):
        evicted, self.cached = self.cached[:count], self.cached[count:]
        return np.array(evicted, dtype=np.int32)

    @rule(row=st.integers(0, ROWS - 1), expected=st.integers(1, 400))
    def open(self, row, expected):
        if row not in self.owned:
            self.memory.open(row, expected)
            self.owned[row] = []

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), count=st.integers(0, 100))
    def take(self, data, count):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        self.owned[row] += self.memory.take(row, min(count, self.memory.free)).tolist()

    @rule(mask=st.integers(1, 2**ROWS - 1))
    def take_one_each(self, mask):
        rows = [row for row in sorted(self.owned) if mask >> row & 1][: self.memory.free]
        if rows:
            slots = self.memory.take_one_each(np.array(rows, dtype=np.int32))
            for row, slot in zip(rows, slots.tolist(), strict=True):
                self.owned[row].append(slot)

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
    def cede(self, data):
        row = data.draw(st.sampled_from(sorted(self.owned)))
        count = data.draw(st.integers(0, len(self.owned[row])))
        self.memory.cede(row, count)
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
        assert self.memory.problems(np.array(self.cached, dtype=np.int32)) == []
        slots = self.cached + [slot for owned in self.owned.values() for slot in owned]
        assert len(set(slots)) == len(slots) and all(0 <= slot < self.CAPACITY for slot in slots)
        assert self.memory.free == self.CAPACITY - len(slots)
        for row, owned in self.owned.items():
            assert self.memory.slots(row).tolist() == owned


class LargerMemoryMachine(MemoryMachine):
    """Where rows claim more than a slot at a time."""

    CAPACITY = 400


_settings = settings(max_examples=100, stateful_step_count=50, deadline=None, database=None)
TestMemory = MemoryMachine.TestCase
TestMemory.settings = _settings
TestLargerMemory = LargerMemoryMachine.TestCase
TestLargerMemory.settings = _settings

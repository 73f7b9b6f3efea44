"""`FreeMap` finds the runs that a look at every flag would find."""

from __future__ import annotations

import numpy as np
import pytest

from lightllm.router.memory.free_slots import FreeMap


def runs(free: np.ndarray) -> list[tuple[int, int]]:
    """First slot and length of every run of free slots."""
    found, start = [], None
    for slot, is_free in enumerate([*free.tolist(), False]):
        if is_free and start is None:
            start = slot
        elif not is_free and start is not None:
            found.append((start, slot - start))
            start = None
    return found


def expected(free: np.ndarray, after: int, count: int, room: int) -> list[int]:
    """The rule, word for word, over flags that say what is free."""
    behind = free[after + 1 : after + 1 + count]
    if after >= 0 and len(behind) == count and behind.all():
        return list(range(after + 1, after + 1 + count))
    found = runs(free)
    fitting = [run for run in found if run[1] >= max(room, count)]
    if fitting:
        start, length = min(fitting, key=lambda run: run[1])
        return list(range(start + length - max(room, count), start + length - max(room, count) + count))
    start, length = max(found, key=lambda run: run[1])
    if length >= count:
        return list(range(start + (length - count) // 2, start + (length - count) // 2 + count))
    most = sorted(found, key=lambda run: -run[1])
    return [slot for start, length in most for slot in range(start, start + length)][:count]


@pytest.mark.parametrize("capacity", [1, 50, 4095, 4096, 4097, 13000])
def test_slots_are_taken_where_the_rule_says_whatever_was_freed_before(capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    slots, free = FreeMap(capacity), np.ones(capacity, dtype=bool)
    for _ in range(150):
        if slots.total and rng.random() < 0.6:
            count = int(rng.integers(1, max(2, min(slots.total, capacity // 3 + 1) + 1)))
            count = min(count, slots.total)
            room, after = int(rng.integers(0, capacity)), int(rng.integers(-1, capacity))
            if count == 1:
                room = (
                    0  # a single row that takes one goes on behind its last, or where there is room for one
                )
            taken = slots.take(count, np.array([after]), np.array([count]), np.array([room]))
            assert taken.tolist() == expected(free, after, count, room)
            free[taken] = False
        elif not free.all():
            held = (~free).nonzero()[0]
            begin = int(rng.integers(len(held)))
            back = held[begin : begin + int(rng.integers(1, capacity + 1))]
            if rng.random() < 0.5:
                back = rng.permutation(back)[: len(back) // 2 + 1]
            slots.add(back)
            free[back] = True
        assert slots.total == free.sum() and np.array_equal(slots.slots(), free.nonzero()[0])


def test_rows_that_have_run_into_others_go_on_at_equal_distances_of_what_is_free() -> None:
    slots, free = FreeMap(10000), np.ones(10000, dtype=bool)
    taken = slots.take(9000, np.array([-1]), np.array([9000]), np.array([9000]))
    free[taken] = False
    back = np.random.default_rng(0).permutation(taken)[:3000]
    slots.add(back)
    free[back] = True
    ends = np.array([slot for slot in taken if slot < 9999 and not free[slot + 1]])[:4]
    left = free.nonzero()[0]
    ones = np.ones(4, dtype=int)
    assert slots.take(4, ends, ones, ones).tolist() == [left[len(left) * odd // 8] for odd in (1, 3, 5, 7)]

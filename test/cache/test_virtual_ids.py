"""Virtual ids: ascending ranges, and a new cycle that passes over what is in use."""

import pytest

from lightllm.cache.virtual_ids import END_OF_VIRTUAL_IDS, FIRST_VIRTUAL_ID, VirtualIds


def nothing():
    return []


def test_ranges_follow_each_other_above_every_vocabulary_and_items_have_ascending_numbers():
    ids = VirtualIds()
    items = [ids.take(tokens, nothing) for tokens in (3, 5, 1)]
    assert items == [0, 3, 8]
    assert [ids.first_id(item) - FIRST_VIRTUAL_ID for item in items] == [0, 3, 8]


def test_when_ids_are_used_up_a_cycle_begins_that_passes_over_what_is_in_use_for_good():
    ids = VirtualIds(first=100, end=200)
    in_use = {100: 10, 150: 20}
    assert ids.first_id(ids.take(90, nothing)) == 100
    item = ids.take(15, in_use.items)
    assert (ids.cycle, ids.first_id(item)) == (1, 110)
    in_use.clear()  # what is given back now may still be in the prefix cache
    assert [ids.first_id(ids.take(tokens, in_use.items)) for tokens in (25, 1, 29)] == [125, 170, 171]
    last = ids.take(1, in_use.items)
    assert (ids.cycle, ids.first_id(last), last) == (2, 100, 200)


def test_the_last_ids_are_int32():
    ids = VirtualIds(next_id=END_OF_VIRTUAL_IDS - 4)
    assert ids.first_id(ids.take(4, nothing)) + 3 == 2**31 - 1
    assert (ids.first_id(ids.take(1, nothing)), ids.cycle) == (FIRST_VIRTUAL_ID, 1)


def test_ids_that_are_all_in_use_are_an_error_not_an_endless_search():
    ids = VirtualIds(next_id=10, first=0, end=10)
    with pytest.raises(OverflowError, match="no 4 consecutive"):
        ids.take(4, lambda: [(0, 4), (6, 4)])

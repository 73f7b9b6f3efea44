"""The table of images: what is referenced stays, ids are never shared, and capacity is never exceeded."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lightllm.cache.table import ImageTable, Item
from lightllm.cache.virtual_ids import VirtualIds
from lightllm.protocol.images import Full, Holding, Want

TOKENS = {"a": 1, "b": 2, "c": 3, "d": 3, "e": 3, "f": 1, "g": 2, "h": 3, "i": 2}
SIZES = {"a": 10, "b": 25, "c": 40, "d": 60, "e": 10, "f": 30, "g": 15, "h": 20, "i": 35}
ENDS = {"next_id": 0, "first": 0, "end": 30}
"""So few virtual ids that they are used up every few items; four items leave room for another wherever they are."""


def want(key: str) -> Want:
    return Want(key, TOKENS[key], SIZES[key])


def make_table(capacity: int = 3, capacity_bytes: int = 1000) -> tuple[ImageTable, list[int]]:
    gone: list[int] = []
    return ImageTable(capacity, capacity_bytes, VirtualIds(), gone.append), gone


def held(table: ImageTable, client: int, keys: str) -> list[Item]:
    items = table.hold(client, [want(key) for key in keys])
    assert not isinstance(items, Full)
    return items


def encode(table: ImageTable, items: list[Item]) -> None:
    for item in items:
        assert table.stored(item.item_id) and table.encoded(item.item_id, item.size)


def test_the_least_recently_used_item_without_references_goes_first():
    table, gone = make_table()
    a, b, c = items = held(table, 1, "abc")
    encode(table, items)
    table.release(1, [b.item_id, a.item_id, c.item_id])
    table.release(1, [held(table, 1, "b")[0].item_id])
    held(table, 1, "de")
    assert gone == [a.item_id, c.item_id]


def test_a_full_cache_says_so_and_changes_nothing():
    table, gone = make_table()
    items = held(table, 1, "ab")
    encode(table, items)
    table.release(1, [items[1].item_id])
    answer = table.hold(2, [want("b"), want("c"), want("d")])
    assert answer == Full("all 3 images of the cache are in use")
    assert table.stats().referenced == 1 and not gone
    assert table.hold(2, [want(key) for key in "abcd"]).never  # type: ignore[union-attr]
    assert table.never_fits([want(key) for key in "abcd"]) and not table.never_fits(
        [want(key) for key in "abca"]
    )
    assert table.stats().full == 2


def test_bytes_are_reserved_before_they_are_written_and_shrink_to_the_embedding():
    table, _ = make_table(capacity=9, capacity_bytes=70)
    (item,) = held(table, 1, "d")
    assert isinstance(table.hold(1, [want("b")]), Full)
    table.encoded(item.item_id, 40)
    assert table.stats().size == 40 and len(held(table, 1, "b")) == 1
    assert table.hold(1, [want("d"), want("c")]).never  # type: ignore[union-attr]


def test_bytes_that_an_unreferenced_item_no_longer_takes_cannot_be_evicted():
    table, gone = make_table(capacity=9, capacity_bytes=100)
    (item,) = held(table, 1, "d")
    table.stored(item.item_id)
    table.release(1, [item.item_id])
    table.encoded(item.item_id, 20)
    held(table, 1, "bcf")
    assert gone == [item.item_id] and table.stats().size == 95
    assert isinstance(table.hold(1, [want("a")]), Full)


def test_an_embedding_larger_than_what_was_reserved_is_refused():
    table, gone = make_table()
    (item,) = held(table, 1, "a")
    with pytest.raises(ValueError, match="11 bytes, and 10 were reserved"):
        table.encoded(item.item_id, 11)
    assert not item.has_embedding
    table.release(1, [item.item_id])
    assert gone == [item.item_id]


def test_a_failed_item_goes_with_its_last_reference_and_can_be_tried_anew():
    table, gone = make_table()
    (item,) = held(table, 1, "a")
    assert held(table, 2, "aa") == [item, item]
    table.stored(item.item_id)
    table.failed(item.item_id)
    table.drop_client(2)
    assert not gone
    table.release(1, [item.item_id])
    assert gone == [item.item_id]
    assert held(table, 1, "a")[0].item_id != item.item_id


def test_an_image_that_no_request_waits_for_any_more_keeps_its_data_for_the_next_request():
    table, gone = make_table()
    stored, unwritten = held(table, 1, "ab")
    table.stored(stored.item_id)
    table.drop_client(1)
    assert gone == [unwritten.item_id]
    assert held(table, 2, "a") == [stored] and stored.has_data and not stored.has_embedding


def test_what_clients_hold_is_taken_up_with_its_ids_before_anything_new_is_made():
    table, _ = make_table()
    table.recovering = True
    assert table.restore(70, "a", 1, 10) and table.restore(90, "b", 2, 25)
    assert isinstance(table.hold(1, [want("c")]), Full)
    assert table.take_up(1, Holding(70, "a", 1, 10, 2), False)
    assert table.take_up(1, Holding(30, "d", 3, 60, 1), True)
    assert not table.take_up(1, Holding(40, "e", 3, 10, 1), False), "there are three already"
    assert [item.item_id for item in held(table, 2, "ad")] == [70, 30]
    table.end_recovery()
    assert table.stats().referenced == 2
    assert not table.take_up(1, Holding(41, "f", 1, 30, 1), False), "too late"
    (new,) = held(table, 1, "c")
    assert 90 not in table and new.item_id in table


class TableMachine(RuleBasedStateMachine):
    """Clients that hold, release, die; encodes that succeed and fail; restarts."""

    @initialize(capacity=st.integers(1, 4), capacity_bytes=st.integers(10, 150))
    def start(self, capacity: int, capacity_bytes: int) -> None:
        self.capacity, self.capacity_bytes = capacity, capacity_bytes
        self.ids = VirtualIds(**ENDS)
        self.held: dict[int, Counter[int]] = {1: Counter(), 2: Counter()}
        """Client -> item -> references, as the client knows them."""
        self.known: dict[int, tuple[str, int, int]] = {}
        """Every item that is there: key, first id, size as reserved."""
        self.used: dict[int, str] = {}
        """Virtual id -> the key that has had it in this cycle."""
        self.cycle = 0
        self.encoded: dict[int, int] = {}
        """Item -> bytes of its embedding."""
        self.table = self.make()

    def make(self) -> ImageTable:
        return ImageTable(self.capacity, self.capacity_bytes, self.ids, self.gone)

    def gone(self, item_id: int) -> None:
        assert not any(counts[item_id] for counts in self.held.values()), "a referenced item was evicted"
        del self.known[item_id]
        self.encoded.pop(item_id, None)

    @rule(client=st.integers(1, 2), keys=st.lists(st.sampled_from(sorted(TOKENS)), min_size=1, max_size=3))
    def hold(self, client: int, keys: list[str]) -> None:
        before = self.table.stats()
        answer = self.table.hold(client, [want(key) for key in keys])
        if isinstance(answer, Full):
            after = self.table.stats()
            assert (after.items, after.references) == (before.items, before.references)
            assert self.lacks_room(set(keys))
            return
        if self.ids.cycle > self.cycle:  # the prefix cache is flushed, but for what is in use
            self.cycle = self.ids.cycle
            in_use = {first + i for key, first, _ in self.known.values() for i in range(TOKENS[key])}
            self.used = {token: key for token, key in self.used.items() if token in in_use}
        for key, item in zip(keys, answer, strict=True):
            first = self.ids.first_id(item.item_id)
            assert (item.key, item.tokens) == (key, TOKENS[key])
            if item.item_id not in self.known:
                ids = range(first, first + item.tokens)
                assert not self.used.keys() & ids, "an id means two images"
                self.used |= dict.fromkeys(ids, key)
                self.known[item.item_id] = (key, first, SIZES[key])
            self.held[client][item.item_id] += 1

    @rule(keys=st.lists(st.sampled_from(sorted(TOKENS)), min_size=1, max_size=6))
    def come_and_go(self, keys: list[str]) -> None:
        """Requests one after the other, whose images are encoded."""
        for key in keys:
            self.hold(2, [key])
            for item_id, count in sorted(self.held[2].items()):
                self.table.stored(item_id)
                for _ in range(count):
                    self.held[2][item_id] -= 1
                    self.table.release(2, [item_id])

    def lacks_room(self, keys: set[str]) -> bool:
        """What is in use, and what these keys need, is more than there is."""
        stay = {i for counts in self.held.values() for i, n in counts.items() if n}
        stay |= {i for i, (key, _, _) in self.known.items() if key in keys}
        new = keys - {key for key, _, _ in self.known.values()}
        size = sum(self.encoded.get(i, SIZES[self.known[i][0]]) for i in stay) + sum(
            SIZES[key] for key in new
        )
        return len(stay) + len(new) > self.capacity or size > self.capacity_bytes

    @precondition(lambda self: any(any(counts.values()) for counts in self.held.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        owned = [(c, i) for c, counts in self.held.items() for i, n in sorted(counts.items()) if n]
        client, item_id = data.draw(st.sampled_from(owned))
        self.held[client][item_id] -= 1
        self.table.release(client, [item_id])

    @rule(client=st.integers(1, 2))
    def die(self, client: int) -> None:
        self.held[client].clear()
        self.table.drop_client(client)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), what=st.sampled_from(["stored", "encoded", "encoded", "failed"]))
    def progress(self, data: st.DataObject, what: str) -> None:
        item_id = data.draw(st.sampled_from(sorted(self.known)))
        if what == "stored":
            self.table.stored(item_id)
        elif what == "failed":
            self.table.failed(item_id)
        else:
            size = self.encoded.setdefault(item_id, self.known[item_id][2] // 2)
            assert self.table.encoded(item_id, size)

    @rule()
    def restart(self) -> None:
        """Another table over the same files: clients take up what they hold, and embeddings come back."""
        known, self.known = self.known, {}
        self.table = self.make()
        self.table.recovering = True
        for item_id, (key, _, _) in known.items():
            wanted = any(counts[item_id] for counts in self.held.values())
            size = self.encoded.get(item_id)
            if size is not None and self.table.restore(item_id, key, TOKENS[key], size) or wanted:
                self.known[item_id] = known[item_id]
        for client, counts in self.held.items():
            for item_id, count in counts.items():
                if count:
                    key, _, size = known[item_id]
                    assert self.table.take_up(client, Holding(item_id, key, TOKENS[key], size, count), False)
        self.table.end_recovery()

    @invariant()
    def nothing_is_lost_and_nothing_too_much(self) -> None:
        if not hasattr(self, "table"):
            return
        stats = self.table.stats()
        assert stats.items == len(self.known) <= self.capacity
        assert all(item_id in self.table for item_id in self.known)
        assert stats.size == sum(self.encoded.get(i, size) for i, (_, _, size) in self.known.items())
        assert stats.size <= self.capacity_bytes
        counts = sum(self.held.values(), Counter())
        assert stats.references == counts.total()
        assert stats.referenced == len(+counts)
        ids = [first + i for key, first, _ in self.known.values() for i in range(TOKENS[key])]
        assert len(ids) == len(set(ids))


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)

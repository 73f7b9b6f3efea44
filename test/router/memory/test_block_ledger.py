"""Whoever hears all events of the prefix cache knows exactly the blocks that it holds."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant
from router.memory.test_radix_cache import CacheMachine, add

from lightllm.protocol import kv_events
from lightllm.protocol.arrays import int32
from lightllm.protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    chain_keys,
    read_prompt,
    tell_prompt,
)
from lightllm.router.memory import block_ledger
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.memory.radix_cache import RadixCache


def keys_of(tokens) -> list[int]:
    return chain_keys(int32(tokens).astype("<i4").tobytes())


class Listener:
    """What a subscriber knows; strict: nothing is stored twice, nothing removed that is not there."""

    def __init__(self) -> None:
        self.stored: dict[int, int | None] = {}
        """Key -> the key of the block before it."""

    def hear(self, events) -> None:
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self.stored.clear()
            elif isinstance(event, BlockStored):
                parent = event.parent_block_hash
                for key in event.block_hashes:
                    assert key not in self.stored
                    self.stored[key] = parent
                    parent = key
            else:
                assert isinstance(event, BlockRemoved) and event.block_hashes
                for key in event.block_hashes:
                    del self.stored[key]


class LedgerMachine(CacheMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache.ledger = BlockLedger()
        self.listener = Listener()

    @invariant()
    def a_listener_knows_the_blocks_of_the_tree(self):
        self.listener.hear(self.cache.ledger.take())
        size = block_ledger.BLOCK_TOKENS
        whole = [prefix for prefix in self.model if len(prefix) % size == 0]
        expected = {
            keys_of(prefix)[-1]: (keys_of(prefix)[-2] if len(prefix) > size else None) for prefix in whole
        }
        assert self.listener.stored == expected
        late = Listener()
        late.hear(self.cache.ledger.everything(self.cache.nodes()))
        assert late.stored == expected


class TestLedger(LedgerMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None, database=None)

    def setUp(self):
        self.before = block_ledger.BLOCK_TOKENS, kv_events.BLOCK_BYTES
        block_ledger.BLOCK_TOKENS, kv_events.BLOCK_BYTES = 2, 8

    def tearDown(self):
        block_ledger.BLOCK_TOKENS, kv_events.BLOCK_BYTES = self.before


def test_what_is_dropped_is_removed_once_although_it_is_still_read():
    cache = RadixCache()
    cache.ledger = ledger = BlockLedger()
    listener = Listener()
    node = cache.append(cache.root, int32(range(130)), int32(range(130)), seq=0)
    below = cache.append(node, int32(range(130, 200)), int32(range(130, 200)), seq=1)
    cache.unlock(node)
    listener.hear(ledger.take())
    assert list(listener.stored) == keys_of(range(200))
    cache.drop(below)
    listener.hear(ledger.take())
    assert listener.stored == {}
    after = cache.append(below, int32(range(200, 300)), int32(range(200, 300)), seq=2)
    assert ledger.take() == []
    cache.unlock(after)
    cache.evict(1000)
    assert ledger.take() == []


def test_token_ids_are_told_where_they_are_wanted():
    cache = RadixCache()
    cache.ledger = ledger = BlockLedger(token_ids=True)
    add(cache, list(range(100)), 0)
    node, _ = add(cache, list(range(300)), 0)
    _, first, second = ledger.take()
    assert first.token_ids == list(range(64)) and first.parent_block_hash is None
    assert second.token_ids == list(range(64, 256)) and second.block_hashes == keys_of(range(300))[1:]
    assert second.parent_block_hash == first.block_hashes[-1]


@pytest.mark.parametrize("tokens, step", [(10, 1), (64, 1), (64 * 512, 1), (64 * 513, 2), (64 * 3000 + 5, 8)])
def test_the_blocks_of_a_prompt_are_told_in_a_header(tokens, step):
    ids = list(range(tokens))
    value = tell_prompt(ids)
    told = read_prompt(value.decode())
    assert (told.tokens, told.step) == (tokens, step) and len(value) < 6000
    assert told.keys == keys_of(ids)[step - 1 :: step]


@pytest.mark.parametrize("value", ["", "1;1", "a;1;", "1;0;", "1;1;AAAA", "1;1;!", "1;1;AAAAAAAAAAA=;x"])
def test_a_header_that_makes_no_sense_is_refused(value):
    with pytest.raises(ValueError):
        read_prompt(value)

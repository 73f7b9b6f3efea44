"""The table of images: references, least recently used eviction, virtual ids. Pure: no files, no sockets, no clock.

    hold -> referenced --last release--> unreferenced (least recently used first) --evict--> gone
                 ^--------- hold ------------'

An item with references is never evicted. One without references goes for room, or at once if it has neither data nor embedding
or could not be encoded. Items and bytes never exceed the capacity: the bytes of an item's files are reserved when it is made.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from lightllm.cache.virtual_ids import VirtualIds
from lightllm.protocol.images import CacheStats, Full, Held, Holding, Want

RECOVERY = 0
"""The client that holds, for a while after a start, what an earlier Cache Manager left; others have numbers from 1."""


@dataclasses.dataclass(slots=True)
class Item:
    item_id: int
    key: str
    tokens: int
    size: int
    """Bytes that its files take or may take."""
    has_data: bool = False
    has_embedding: bool = False
    failed: bool = False
    references: int = 0


class ImageTable:
    def __init__(
        self, capacity: int, capacity_bytes: int, ids: VirtualIds, discard: Callable[[int], None]
    ) -> None:
        """capacity: items. discard: told of every item that goes, by its number."""
        self.ids = ids
        self.recovering = False
        """Items of before are still expected to be taken up: what is not there cannot be made yet."""
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._discard = discard
        self._items: dict[int, Item] = {}
        self._by_key: dict[str, Item] = {}
        self._unreferenced: collections.OrderedDict[int, Item] = collections.OrderedDict()
        """By number; least recently used first."""
        self._references: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
        """Client -> item -> references."""
        self._size = self._unreferenced_size = 0
        self._hits = self._misses = self._evicted = self._full = self._restored = 0

    def __contains__(self, item_id: int) -> bool:
        return item_id in self._items

    # -- references

    def hold(self, client: int, wants: Sequence[Want]) -> list[Item] | Full:
        """A reference to each, new items included; or none at all."""
        distinct = {want.key: want for want in wants}
        new = [want for want in distinct.values() if want.key not in self._by_key]
        hits = [self._by_key[key] for key in distinct if key in self._by_key]
        for item in hits:
            if item.tokens != distinct[item.key].tokens:
                raise ValueError(
                    f"{item.key} has {item.tokens} tokens here, and is wanted with {distinct[item.key].tokens}"
                )
        full = self._lacks_room(distinct, hits, new)
        if full is not None:
            self._full += 1
            return full
        counts = collections.Counter(want.key for want in wants)
        for item in hits:
            self._refer(client, item, counts[item.key])
        self._make_room(len(new), sum(want.size for want in new))
        for want in new:
            item = Item(self.ids.take(want.tokens, self._ranges), want.key, want.tokens, want.size)
            self._insert(item)
            self._refer(client, item, counts[item.key])
        self._hits += len(wants) - len(new)
        self._misses += len(new)
        return [self._by_key[want.key] for want in wants]

    def never_fits(self, wants: Sequence[Want]) -> Full | None:
        """Why they do not fit together into the cache, were it empty; None: they do."""
        sizes = {want.key: want.size for want in wants}
        return self._exceeds(len(sizes), sum(sizes.values()))

    def held(self, item: Item) -> Held:
        """What a client is told of an item that it holds."""
        first_id = self.ids.first_id(item.item_id)
        return Held(item.item_id, first_id, item.tokens, item.has_data, item.has_embedding)

    def release(self, client: int, item_ids: Iterable[int]) -> None:
        """One reference each; of those that the client does not hold nothing happens."""
        held = self._references[client]
        for item_id in item_ids:
            if held[item_id] > 0:
                held[item_id] -= 1
                self._unrefer(self._items[item_id], 1)
            if not held[item_id]:
                del held[item_id]

    def drop_client(self, client: int) -> None:
        for item_id, count in self._references.pop(client, collections.Counter[int]()).items():
            self._unrefer(self._items[item_id], count)

    # -- what becomes of an item. False: there is no such item

    def stored(self, item_id: int) -> bool:
        item = self._items.get(item_id)
        if item is None:
            return False
        item.has_data = not item.has_embedding
        return True

    def encoded(self, item_id: int, size: int) -> bool:
        """size: bytes of the embedding's file; the data is no longer needed. Raises `ValueError` if it is more than was
        reserved: it counts as failed."""
        item = self._items.get(item_id)
        if item is None:
            return False
        if not item.has_embedding and size > item.size:
            self.failed(item_id)
            raise ValueError(
                f"the embedding of image {item_id} has {size} bytes, and {item.size} were reserved"
            )
        if not item.has_embedding:
            self._resize(item, size)
            item.has_embedding, item.has_data, item.failed = True, False, False
        return True

    def failed(self, item_id: int) -> None:
        item = self._items.get(item_id)
        if item is not None and not item.has_embedding:
            item.failed = True
            self._drop_if_useless(item)

    # -- recovery

    def restore(self, item_id: int, key: str, tokens: int, size: int) -> bool:
        """An embedding that an earlier Cache Manager left. False: there is no room for it."""
        if not self._take_up(Item(item_id, key, tokens, size, has_embedding=True), RECOVERY, 1):
            return False
        self._restored += 1
        return True

    def take_up(self, client: int, held: Holding, has_data: bool) -> bool:
        """A client of an earlier Cache Manager holds it on; False: it is lost."""
        item = self._items.get(held.item_id)
        if item is not None and item.key == held.key:
            self._refer(client, item, held.references)
            return True
        if not self.recovering or item is not None:
            return False
        new = Item(held.item_id, held.key, held.tokens, held.size, has_data)
        return self._take_up(new, client, held.references)

    def end_recovery(self) -> None:
        """What no client has taken up has no references now."""
        self.recovering = False
        self.drop_client(RECOVERY)

    def stats(self) -> CacheStats:
        return CacheStats(
            items=len(self._items),
            referenced=len(self._items) - len(self._unreferenced),
            references=sum(item.references for item in self._items.values()),
            size=self._size,
            cycle=self.ids.cycle,
            hits=self._hits,
            misses=self._misses,
            evicted=self._evicted,
            full=self._full,
            restored=self._restored,
        )

    # -- helpers

    def _exceeds(self, items: int, size: int) -> Full | None:
        """Whether so many items, of so many bytes together, are more than the whole cache."""
        if items > self._capacity:
            return Full(
                f"{items} images do not fit into a cache of {self._capacity} (--cache_capacity)", never=True
            )
        if size > self._capacity_bytes:
            return Full(
                f"{size >> 20} MiB of images do not fit into a cache of {self._capacity_bytes >> 20} MiB "
                "(--cache_capacity_bytes)",
                never=True,
            )
        return None

    def _lacks_room(self, distinct: dict[str, Want], hits: list[Item], new: list[Want]) -> Full | None:
        if not new:
            return None
        size = sum(want.size for want in new)
        if full := self._exceeds(len(distinct), size + sum(item.size for item in hits)):
            return full
        if self.recovering:
            return Full("the image cache is starting again")
        spared = [item for item in hits if not item.references]
        evictable = len(self._unreferenced) - len(spared)
        evictable_size = self._unreferenced_size - sum(item.size for item in spared)
        if len(self._items) - evictable + len(new) > self._capacity:
            return Full(f"all {self._capacity} images of the cache are in use")
        if self._size - evictable_size + size > self._capacity_bytes:
            return Full(f"the image cache's {self._capacity_bytes >> 20} MiB are in use")
        return None

    def _make_room(self, items: int, size: int) -> None:
        while len(self._items) + items > self._capacity or self._size + size > self._capacity_bytes:
            self._evicted += 1
            self._remove(next(iter(self._unreferenced.values())))

    def _take_up(self, item: Item, client: int, references: int) -> bool:
        fits = len(self._items) < self._capacity and self._size + item.size <= self._capacity_bytes
        if not fits or item.item_id in self._items:
            return False
        self._insert(item)
        self._refer(client, item, references)
        return True

    def _insert(self, item: Item) -> None:
        self._items[item.item_id] = item
        self._by_key.setdefault(item.key, item)
        self._unreferenced[item.item_id] = item
        self._size += item.size
        self._unreferenced_size += item.size

    def _remove(self, item: Item) -> None:
        del self._items[item.item_id]
        del self._unreferenced[item.item_id]
        if self._by_key.get(item.key) is item:
            del self._by_key[item.key]
        self._size -= item.size
        self._unreferenced_size -= item.size
        self._discard(item.item_id)

    def _resize(self, item: Item, size: int) -> None:
        self._size += size - item.size
        if not item.references:
            self._unreferenced_size += size - item.size
        item.size = size

    def _refer(self, client: int, item: Item, count: int) -> None:
        if self._unreferenced.pop(item.item_id, None) is not None:
            self._unreferenced_size -= item.size
        item.references += count
        self._references[client][item.item_id] += count

    def _unrefer(self, item: Item, count: int) -> None:
        item.references -= count
        if not item.references:
            self._unreferenced[item.item_id] = item
            self._unreferenced_size += item.size
            self._drop_if_useless(item)

    def _drop_if_useless(self, item: Item) -> None:
        if not item.references and not item.has_embedding and (item.failed or not item.has_data):
            self._remove(item)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        return ((self.ids.first_id(item.item_id), item.tokens) for item in self._items.values())

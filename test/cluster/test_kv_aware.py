"""What workers tell of their caches reaches the policy over real sockets, whatever gets lost; the policy goes by it."""

from __future__ import annotations

import dataclasses
import random
import threading
import time

import httpx
import msgspec
import numpy as np
import pytest
import zmq
from aiohttp import web
from cluster.conftest import MockWorker, RunningController, ask, make_workers

from lightllm.cluster import kv_subscriptions
from lightllm.cluster.ask import Ask, blocks_of
from lightllm.cluster.dispatch.kv_aware import KvAware
from lightllm.cluster.dispatch.prompt_map import PromptMap
from lightllm.errors import StartupError
from lightllm.protocol.arrays import int32
from lightllm.protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEventBatch,
    ToldPrompt,
    chain_keys,
    tell_prompt,
)
from lightllm.router import kv_events
from lightllm.router.kv_events import KvEventPublisher
from lightllm.router.memory.radix_cache import RadixCache


def ids_of(text: str) -> list[int]:
    """A tokenizer of four bytes a token."""
    return np.frombuffer(text.encode()[: len(text) // 4 * 4], "<i4").tolist()


def told(text: str) -> ToldPrompt:
    return ToldPrompt(len(ids_of(text)), 1, chain_keys(int32(ids_of(text)).tobytes()))


LONG = "".join(random.Random(1).choices("abcdefgh ", k=256 * 40))


@pytest.fixture
def policy() -> KvAware:
    return KvAware(random.Random(0))


def test_a_worker_is_chosen_for_what_it_has_and_not_for_what_it_was_sent(policy):
    one, two = make_workers(2)
    for worker in (one, two):
        policy.hear(worker.url, [AllBlocksCleared()])
    asked, keys = ask(LONG), told(LONG).keys
    policy.learn(one, asked, told(LONG))
    policy.hear(two.url, [BlockStored(keys, None, [], 64)])
    assert policy.choose([one, two], asked) is two and policy.cached_tokens(two, asked) > 64 * 37
    policy.hear(two.url, [BlockRemoved(keys[10:])])
    assert 64 * 9 <= policy.cached_tokens(two, asked) <= 64 * 11
    policy.hear(two.url, [AllBlocksCleared()])
    assert policy.cached_tokens(two, asked) == 0


def test_a_burst_of_one_prompt_does_not_spread_before_its_blocks_are_told(policy):
    workers = make_workers(4)
    for worker in workers:
        policy.hear(worker.url, [AllBlocksCleared()])
    chosen = set()
    for _ in range(5):
        worker = policy.choose(workers, ask(LONG))
        policy.sent(worker, ask(LONG))
        chosen.add(worker.url)
    assert len(chosen) == 1


def test_a_worker_that_tells_nothing_is_judged_by_what_it_was_sent(policy):
    one, two = make_workers(2)
    policy.hear(one.url, [AllBlocksCleared()])
    policy.sent(two, ask(LONG))
    assert policy.choose([one, two], ask(LONG)) is two
    policy.hear(two.url, [AllBlocksCleared()])
    policy.lose_touch(two.url)
    assert policy.cached_tokens(two, ask(LONG)) == 64 * 40
    policy.gone(two)
    assert policy.cached_tokens(two, ask(LONG)) == 0


@pytest.mark.parametrize("bytes_a_token", [2.5, 4.0, 6.0])
def test_prompts_that_share_a_text_are_found_in_each_others_blocks(bytes_a_token):
    """Of whatever length tokens are: but for two blocks at the end of what is shared."""
    tokens = [int(n * bytes_a_token) for n in range(int(len(LONG) / bytes_a_token))]  # where each begins
    shared = 256 * 30
    texts = [LONG[:shared] + end * (len(LONG) - shared) for end in "xy"]
    ids = [[hash((text[at : at + 8], at < shared)) % 1000 for at in tokens] for text in texts]
    keys = [chain_keys(int32(each).tobytes()) for each in ids]
    common = sum(a == b for a, b in zip(*keys))
    prompts = PromptMap()
    prompts.learn(ask(texts[0]), ToldPrompt(len(tokens), 1, keys[0]))
    found = prompts.keys(ask(texts[1]))
    assert len(found) == 30 and set(found) <= {0, *keys[0][:common]}
    assert keys[0].index(found[-1]) >= common - 3


def test_the_map_of_prompts_is_bounded_and_belongs_to_a_model():
    prompts = PromptMap(most=50)
    for number in range(5):
        text = f"{number} " + LONG
        prompts.learn(ask(text), told(text))
    assert len(prompts) == 50 and prompts.keys(dataclasses.replace(ask(text), model="other")) == []


def test_a_prompt_of_token_ids_is_mapped_to_its_own_blocks():
    ids = list(range(300))
    asked = Ask("m", blocks_of(int32(ids).tobytes()), 300, is_ids=True)
    prompts = PromptMap()
    prompts.learn(asked, ToldPrompt(300, 1, chain_keys(int32(ids).tobytes())))
    assert prompts.keys(asked) == [*asked.blocks]


class CachingWorker(MockWorker):
    """A server of ours that publishes the events of a real tree."""

    more_paths = ("/get_server_info",)

    def __init__(self) -> None:
        self.context = zmq.Context()
        self._lock = threading.Lock()
        self.cache = RadixCache()
        self.next_slot = 0
        self.endpoint, self.publisher = self._publisher()
        super().__init__()

    def _publisher(self, port: int = 0) -> tuple[str, KvEventPublisher]:
        while True:
            endpoint = f"tcp://127.0.0.1:{port or random.randrange(20000, 60000)}"
            try:
                publisher = KvEventPublisher(self.context, endpoint, token_ids=False)
            except StartupError:  # another's port, or not let go of yet
                time.sleep(0.01)
                continue
            publisher.attach(self)
            return endpoint, publisher

    def watch_cache(self, ledger) -> None:
        self.cache = RadixCache()
        self.cache.ledger = ledger

    def cached_nodes(self):
        return self.cache.nodes()

    async def _list(self, request: web.Request) -> web.Response:
        if request.path == "/get_server_info":
            return web.json_response({"max_total_token_num": 100_000, "kv_events": self.endpoint})
        return await super()._list(request)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body)
        ids = ids_of(body["prompt"])
        self.store(ids)
        assert request.headers["x-lightllm-prompt-blocks"] == "1"
        told = tell_prompt(ids).decode()
        return web.json_response({"from": self.url}, headers={"x-lightllm-prompt-blocks": told})

    def store(self, ids: list[int]) -> None:
        with self._lock:
            slots = np.arange(self.next_slot, self.next_slot + len(ids), dtype=np.int32)
            self.next_slot += len(ids)
            self.cache.insert(int32(ids), slots)

    def turn(self) -> None:
        with self._lock:
            self.publisher.turn()

    def restart(self) -> None:
        """Another life at the same address, with an empty cache."""
        with self._lock:
            self.publisher.close()
            _, self.publisher = self._publisher(int(self.endpoint.rsplit(":", 1)[1]))

    def end(self) -> None:
        super().end()
        self.publisher.close()
        self.context.destroy(0)


@pytest.fixture
def caching(start, monkeypatch):
    monkeypatch.setattr(kv_subscriptions, "_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(kv_subscriptions, "_PAUSE_SECONDS", 0.3)
    workers = [start(CachingWorker) for _ in range(2)]
    running = start(RunningController, workers=[worker.url for worker in workers], dispatch_method="kv_aware")
    running.wait_for(lambda: len(running.registry) == 2)
    running.turn = lambda: [worker.turn() for worker in workers]
    return running, workers


def blocks(running, worker) -> int | None:
    """Of the worker, as the controller knows them by now."""
    (found,) = [
        each for each in httpx.get(running.url + "/workers").json()["workers"] if each["url"] == worker.url
    ]
    return found["kv_blocks"]


def wait_for_blocks(running, worker, count: int | None) -> None:
    def there() -> bool:
        running.turn()
        return blocks(running, worker) == count

    running.wait_for(there)


def test_the_controller_hears_all_even_what_it_missed(caching, monkeypatch):
    running, (one, two) = caching
    wait_for_blocks(running, one, 0)
    one.store(list(range(640)))
    wait_for_blocks(running, one, 10)
    # a batch is lost on its way: the next one has a number too many
    live = one.publisher._live

    class Lossy:
        def send_multipart(self, frames):
            pass

    one.publisher._live = Lossy()
    one.store(list(range(1000, 1640)))
    one.turn()
    one.publisher._live = live
    assert blocks(running, one) == 10
    one.store(list(range(2000, 2064)))
    wait_for_blocks(running, one, 21)
    # so many are lost that the worker keeps them no longer
    monkeypatch.setattr(kv_events, "_KEPT", 1)
    one.publisher._live = Lossy()
    one.cache.evict(64)
    one.turn()
    one.publisher._live = live
    one.store(list(range(3000, 3128)))
    wait_for_blocks(running, one, 22)


def test_a_worker_that_was_started_anew_has_nothing(caching):
    running, (one, _) = caching
    one.store(list(range(640)))
    wait_for_blocks(running, one, 10)
    one.restart()
    one.store(list(range(64)))
    one.turn()  # what nobody hears who is not connected again yet
    wait_for_blocks(running, one, 1)


def test_nonsense_makes_the_controller_go_by_what_it_has_sent(caching):
    running, (one, _) = caching
    one.store(list(range(640)))
    wait_for_blocks(running, one, 10)
    with one._lock:
        number = one.publisher._number + 1
        one.publisher._live.send_multipart([b"", number.to_bytes(8, "big"), msgspec.msgpack.encode([1, 2])])
    running.wait_for(lambda: blocks(running, one) is None)
    wait_for_blocks(running, one, 10)  # and it asks again


def test_a_long_replay_is_whole_however_slowly_it_is_read(caching):
    running, (one, _) = caching
    wait_for_blocks(running, one, 0)
    live, one.publisher._live = one.publisher._live, Silent()
    for number in range(4000):
        one.store(list(range(100 * number, 100 * number + 64)))
        one.turn()
    one.publisher._live = live
    wait_for_blocks(running, one, 4000)


@pytest.mark.parametrize("gap", ["in a replay", "behind a replay", "at the beginning"])
def test_a_gap_is_answered_by_a_view_that_is_made_anew(caching, caplog, gap):
    running, (one, _) = caching
    one.store(list(range(640)))
    wait_for_blocks(running, one, 10)
    publisher, known = one.publisher, set()
    live, publisher._live = publisher._live, Silent()
    for number in range(1, 5):
        one.store(list(range(1000 * number, 1000 * number + 64)))
        one.turn()
    replays = publisher._replay

    def lossy(asker: bytes, first: int) -> None:
        """Once, an answer lacks a batch."""
        kept = list(publisher._kept)
        places = {
            "in a replay": slice(-2, -1),
            "behind a replay": slice(-1, None),
            "at the beginning": slice(0, 1),
        }
        if gap == "at the beginning" and first > 0:  # nonsense: all is asked for again
            publisher.replays.send_multipart([asker, b"", first.to_bytes(8, "big"), b"\xc1"])
            return
        missing = kept[places[gap]]
        for number, data in kept:
            if number >= first and (number, data) not in missing:
                publisher.replays.send_multipart([asker, b"", number.to_bytes(8, "big"), data])
        publisher.replays.send_multipart([asker, b"", kv_events.END, b""])
        known.add(first)
        publisher._replay = replays

    publisher._replay = lossy
    publisher._live = live
    seen = set()

    def whole() -> bool:
        seen.add(blocks(running, one))
        running.turn()
        return bool(known) and blocks(running, one) == 14

    running.wait_for(whole)
    assert "batches are missing" in caplog.text or gap == "behind a replay"
    assert seen <= {None, 10, 11, 12, 13, 14}


class Silent:
    """A socket that loses all."""

    def send_multipart(self, frames) -> None:
        pass


def test_requests_go_where_their_prompt_is(caching):
    running, workers = caching
    for worker in workers:
        wait_for_blocks(running, worker, 0)

    def post(text: str) -> str:
        answer = httpx.post(running.url + "/v1/completions", json={"model": "m", "prompt": text})
        assert "x-lightllm-prompt-blocks" not in answer.headers
        running.turn()
        return answer.json()["from"]

    holder = next(worker for worker in workers if worker.url == post(LONG))
    wait_for_blocks(running, holder, 40)
    assert [post(LONG + f" {number}") for number in range(3)] == [holder.url] * 3
    (other,) = [worker for worker in workers if worker is not holder]
    holder.cache.evict(10**6)
    wait_for_blocks(running, holder, 0)
    other.store(ids_of(LONG))
    wait_for_blocks(running, other, 40)
    assert post(LONG + " 4") == other.url


def test_a_batch_is_what_vllm_would_send():
    data = msgspec.msgpack.encode(
        [1.5, [["BlockStored", [1], None, [5], 16, None, "GPU", None], ["AllBlocksCleared"]], 0]
    )
    batch = msgspec.msgpack.decode(data, type=KvEventBatch)
    assert batch.events == [BlockStored([1], None, [5], 16, None, "GPU"), AllBlocksCleared()]

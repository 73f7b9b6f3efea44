"""The map of the KV memory that people see: who has which part of it."""

from __future__ import annotations

import numpy as np
import pytest
from support.router_device import Engine, add_request, make_limits

from lightllm.ipc.kv_map import MAP_CELLS
from lightllm.router.memory.token_memory import TokenMemory


def roomy(slots: int, **changes: object) -> Engine:
    values = {
        "max_total_token_num": slots,
        "max_req_total_len": 200,
        "batch_max_tokens": 64,
        "chunked_prefill_size": 64,
    }
    return Engine(make_limits(**(values | changes)))


def test_an_empty_memory_is_free() -> None:
    drawn = roomy(400).scheduler.kv_map(5.0)
    assert (drawn.drawn, drawn.slots, drawn.own, drawn.cached, drawn.read, drawn.free, drawn.nodes) == (
        5.0,
        400,
        0,
        0,
        0,
        400,
        0,
    )
    assert drawn.cells.size == [1] * 400 and drawn.cells.own == drawn.cells.cached == [0] * 400


def test_a_running_request_owns_what_it_generates_and_reads_its_prompt_in_the_tree() -> None:
    engine = roomy(400)
    engine.add(add_request(1, list(range(1, 21)), 5, ignore_eos=True))
    for _ in range(3):
        engine.plan()
        engine.execute()
        engine.apply()
    drawn = engine.scheduler.kv_map(0.0)
    assert (drawn.cached, drawn.read, drawn.own, drawn.free, drawn.nodes) == (20, 20, 2, 378, 1)
    assert sum(drawn.cells.own) == 2 and sum(drawn.cells.cached) == 20


def test_what_stays_behind_is_cached_and_read_by_nobody() -> None:
    engine = roomy(400)
    engine.add(add_request(1, list(range(1, 21)), 5, ignore_eos=True))
    engine.run()
    drawn = engine.scheduler.kv_map(0.0)
    assert (drawn.own, drawn.cached, drawn.read, drawn.free) == (0, 24, 0, 376)  # the last token has no slot
    assert drawn.nodes >= 1 and drawn.nodes == sum(1 for _ in engine.scheduler._running.kv.cache.nodes())


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("slots", [1, 7, MAP_CELLS - 1, MAP_CELLS, MAP_CELLS + 1, 5000, 100_003])
def test_every_slot_is_in_one_cell(slots: int, neighbours: bool) -> None:
    drawn = roomy(slots, neighbouring_slots=neighbours, max_req_total_len=min(slots, 200)).scheduler.kv_map(
        0.0
    )
    cells = drawn.cells
    assert len(cells.size) == len(cells.own) == len(cells.cached) == min(slots, MAP_CELLS)
    assert sum(cells.size) == slots and max(cells.size) - min(cells.size) <= 1
    assert set(cells.cached) == {0} and drawn.free == slots


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_cell_counts_the_slots_that_lie_in_it(neighbours: bool) -> None:
    memory = TokenMemory(1000, 2, neighbours=neighbours)
    taken = []
    for row, count in ((0, 150), (1, 333)):
        memory.open(row, count)
        taken.append(memory.take(np.array([row]), np.array([count]), count))
    own, free = memory.per_cell(7)
    expected = np.bincount(np.concatenate(taken) * 7 // 1000, minlength=7)
    size = np.bincount(np.arange(1000) * 7 // 1000, minlength=7)
    assert own.tolist() == expected.tolist() and (own + free).tolist() == size.tolist()
    memory.donate(0, 100)
    own, free = memory.per_cell(7)
    assert int(own.sum()) == 383 and int(size.sum() - own.sum() - free.sum()) == 100

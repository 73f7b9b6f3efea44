"""Real groups of gloo ranks: what they compute together, and what happens when one of them leaves."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.ranks import make_rendezvous, run_ranks

from lightllm.distributed.collectives import PeerLost, Superseded
from lightllm.distributed.rendezvous import RankStore
from lightllm.distributed.tp_group import TpGroup, agree_on_slots
from lightllm.errors import DeviceError

GIB = 1 << 30


def test_one_rank_alone_needs_no_others() -> None:
    x = torch.arange(3.0)
    group = TpGroup()
    assert group.all_reduce(x) is x and group.broadcast(x) is x and group.all_gather_last(x) is x
    assert group.gather_numbers(4, 5) == [[4, 5]]
    assert agree_on_slots(group, 77, None) == 77


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_have_the_same_bits_on_every_rank(tmp_path: Path, dtype: torch.dtype) -> None:
    def work(group: TpGroup) -> torch.Tensor:
        generator = torch.Generator().manual_seed(group.rank)
        return group.all_reduce(torch.randn(33, 17, generator=generator).to(dtype))

    first, *others = run_ranks(tmp_path, 3, work)
    parts = [
        torch.randn(33, 17, generator=torch.Generator().manual_seed(rank)).to(dtype) for rank in range(3)
    ]
    torch.testing.assert_close(first, sum(parts), rtol=2e-2, atol=2e-2)
    assert all(torch.equal(first, other) for other in others)


def test_gathered_parts_lie_in_the_order_of_ranks(tmp_path: Path) -> None:
    def work(group: TpGroup) -> tuple[list[list[float]], list[list[int]]]:
        part = torch.full((2, 4), float(group.rank))[:, ::2]  # not contiguous
        return group.all_gather_last(part).tolist(), group.gather_numbers(group.rank, -1)

    for columns, numbers in run_ranks(tmp_path, 2, work):
        assert columns == [[0, 0, 1, 1]] * 2
        assert numbers == [[0, -1], [1, -1]]


def test_a_broadcast_gives_everybody_the_tokens_of_rank_0(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, lambda group: group.broadcast(torch.tensor([group.rank + 5])).item())
    assert results == [5, 5]


def test_who_does_not_come_is_named_within_the_timeout(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(PeerLost, match="tensor parallel ranks 1, 2 did not answer within 0 s"):
        RankStore(make_rendezvous(tmp_path, 0, 3, join_timeout=0.3)).arrive(0)
    assert time.monotonic() - started < 5


def test_who_hangs_makes_the_others_fail_within_the_timeout(tmp_path: Path) -> None:
    wake = threading.Event()

    def work(group: TpGroup) -> float:
        if group.rank == 1:
            wake.wait(20)
            return 0.0
        started = time.monotonic()
        try:
            with pytest.raises(PeerLost):
                group.all_reduce(torch.ones(2))
            return time.monotonic() - started
        finally:
            wake.set()

    waited, _ = run_ranks(tmp_path, 2, work, operation_timeout=0.5)
    assert 0.4 < waited < 5


def test_who_leaves_frees_the_others_at_once_and_is_heard(tmp_path: Path) -> None:
    def work(group: TpGroup) -> tuple[float, str | None]:
        if group.rank == 1:
            time.sleep(0.2)
            group.drop("rank 1 ran out of memory")
            return 0.0, None
        started = time.monotonic()
        with pytest.raises(PeerLost):
            group.all_reduce(torch.ones(2))
        return time.monotonic() - started, group.read_failure()

    (waited, why), _ = run_ranks(tmp_path, 2, work)
    assert waited < 5
    assert why == "rank 1 ran out of memory"


def test_a_group_that_fell_apart_comes_together_again(tmp_path: Path) -> None:
    def work(group: TpGroup) -> float:
        if group.rank == 0:
            group.drop("a reason")
        with pytest.raises(PeerLost):
            group.all_reduce(torch.ones(2))
        group.reconnect()
        assert group.read_failure() is None
        return group.all_reduce(torch.ones(2))[0].item()

    assert run_ranks(tmp_path, 2, work) == [2.0, 2.0]


def test_a_meeting_that_one_rank_has_left_is_off_for_all(tmp_path: Path) -> None:
    """One who is wanted elsewhere leaves while it waits; one who comes later does not wait for it."""
    wanted = dataclasses.replace(make_rendezvous(tmp_path, 0, 2), superseded=lambda: True)
    started = time.monotonic()
    with pytest.raises(Superseded):
        RankStore(wanted).arrive(5)
    with pytest.raises(Superseded):
        RankStore(make_rendezvous(tmp_path, 1, 2)).arrive(5)
    assert time.monotonic() - started < 10


def test_a_meeting_for_which_all_are_there_takes_place(tmp_path: Path) -> None:
    """Whoever is wanted elsewhere by then."""
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(RankStore(make_rendezvous(tmp_path, 0, 2)).arrive, 5)
        wanted = dataclasses.replace(make_rendezvous(tmp_path, 1, 2), superseded=lambda: waiting.done())
        assert RankStore(wanted).arrive(5) and waiting.result(20)


def test_a_rank_that_comes_to_the_same_place_by_another_name_is_not_met(tmp_path: Path) -> None:
    """It was started for ranks that are no more."""
    old = dataclasses.replace(make_rendezvous(tmp_path, 1, 2, join_timeout=0.3), name="before")
    new = dataclasses.replace(make_rendezvous(tmp_path, 0, 2, join_timeout=0.3), name="now")
    for rendezvous, missing in ((old, 0), (new, 1)):
        with pytest.raises(PeerLost, match=f"tensor parallel rank {missing} did not answer"):
            RankStore(rendezvous).arrive(0)


def test_the_smallest_number_of_slots_counts(tmp_path: Path) -> None:
    results = run_ranks(tmp_path, 2, lambda group: agree_on_slots(group, 100 + group.rank, 4 * GIB))
    assert results == [100, 100]


def test_unequal_free_memory_names_the_rank(tmp_path: Path) -> None:
    for result in run_ranks(
        tmp_path, 3, lambda group: agree_on_slots(group, 9, (8 - 3 * (group.rank == 1)) * GIB)
    ):
        assert isinstance(result, DeviceError)
        assert "tensor parallel rank 1 have" in str(result) and "rank 1 5.0 GiB" in str(result)

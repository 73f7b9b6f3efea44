"""Rows of a weight that lies in several places are what torch.cat would make of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from lightllm.ops.weight_rows import WeightRows

CPU = torch.device("cpu")


def parts() -> list[torch.Tensor]:
    """Rows of a larger tensor, columns of one, rows in turns, none, and one that is stored once for several rows."""
    whole = torch.randn(40, 24)
    return [whole[3:10, :12], whole[:, 12:], whole[1::2, ::2], whole[:0, :12], whole[5, :12].expand(4, -1)]


def test_all_rows_are_those_of_the_parts_in_order() -> None:
    rows = WeightRows(given := parts(), torch.float32, CPU)
    expected = torch.cat(given)
    assert rows.shape == expected.shape
    assert torch.equal(rows.load(), expected)


@pytest.mark.parametrize("piece_rows", [1, 5, 16, 71, 100])
def test_pieces_follow_each_other_across_parts(piece_rows: int) -> None:
    rows = WeightRows(given := parts(), torch.float32, CPU)
    expected = torch.cat(given)
    pieces = rows.pack(piece_rows, torch.float32, lambda piece, first: (first, piece.clone()))
    assert [first for first, _ in pieces] == list(range(0, len(expected), piece_rows))
    assert torch.equal(torch.cat([piece for _, piece in pieces]), expected)


def test_what_is_widened_has_been_rounded_before() -> None:
    rows = WeightRows(given := parts(), torch.bfloat16, CPU)
    expected = torch.cat(given).bfloat16()
    assert torch.equal(rows.load(), expected)
    assert torch.equal(rows.load(torch.float32), expected.float())
    (piece,) = rows.pack(1000, torch.float32, lambda piece, first: piece.clone())
    assert torch.equal(piece, expected.float())


def test_rounding_of_many_chunks_on_the_way_to_a_wider_dtype() -> None:
    weight = torch.randn(3000, 1024)
    rows = WeightRows([weight[:1999], weight[1999:]], torch.float16, CPU)
    (piece,) = rows.pack(3000, torch.float32, lambda piece, first: piece.clone())
    assert torch.equal(piece, weight.half().float())


def test_vectors_and_stacks_have_rows_too() -> None:
    vector, stack = torch.randn(7), torch.randn(3, 4, 5)
    assert torch.equal(WeightRows([vector, vector], vector.dtype, CPU).load(), torch.cat((vector, vector)))
    assert torch.equal(WeightRows([stack, stack], stack.dtype, CPU).load(), torch.cat((stack, stack)))


def test_every_row_is_forgotten_once_it_has_been_copied_a_few_mib_at_a_time() -> None:
    weight, forgotten = torch.randn(3000, 1024), list[torch.Tensor]()
    rows = WeightRows([weight[:1000], weight[1000:]], weight.dtype, CPU, release_pages=forgotten.append)
    assert torch.equal(rows.load(), weight)
    assert len(forgotten) > 2 and max(part.nbytes for part in forgotten) <= 4 << 20
    assert torch.equal(torch.cat(forgotten), weight)


def test_the_budget_is_held_for_one_piece_while_all_are_packed() -> None:
    entered: list[int] = []
    inside: list[bool] = []

    @contextmanager
    def budget(nbytes: int) -> Iterator[None]:
        entered.append(nbytes)
        inside.append(True)
        yield
        inside.clear()

    rows = WeightRows([torch.randn(50, 8)], torch.float32, CPU, budget=budget)
    rows.pack(20, torch.float32, lambda piece, first: inside[0])
    assert len(entered) == 1 and 0 <= entered[0] - (20 * 8 * 4) <= 8 << 20 and not inside

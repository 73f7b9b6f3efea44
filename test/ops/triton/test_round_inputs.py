"""The kernel that builds the inputs of a round, against a loop over its tokens."""

import pytest
import torch
from ops.test_round_inputs import CASES, Case
from support.kernels import DEVICE

from lightllm.ops.triton.round_inputs import build_round_inputs


def check(case: Case) -> None:
    for result, expected in zip(case.run(build_round_inputs), case.expected(), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", CASES)
def test_kernel_equals_the_loop(name: str) -> None:
    check(Case(*CASES[name], device=DEVICE))


def test_padding_in_the_hold_row_writes_nothing_else() -> None:
    case = Case([1] * 8, [5, 1, 9, 30, 2, 1, 1, 1], 8, padding=3, device=DEVICE)
    case.slots[-3:] = 9_999  # the hold slot
    check(case)


def test_a_chunk_longer_than_a_block() -> None:
    check(Case([1, 1500, 3], [4, 1600, 3], 1, max_len=1700, device=DEVICE))


def test_rows_that_begin_beyond_two_to_the_31_elements() -> None:
    """The table is a view with a huge stride: only its address arithmetic is large."""
    stride = 2**30
    memory = torch.empty(3 * stride, dtype=torch.int32, device=DEVICE)
    table = memory.as_strided((3, 16), (stride, 1))
    place = {"device": DEVICE}
    build_round_inputs(
        torch.tensor([2], **place), torch.tensor([0, 1], dtype=torch.int32, **place),
        torch.tensor([4], dtype=torch.int32, **place), torch.tensor([77], **place), 1, 1,
        torch.tensor([1, 2, 3], **place), torch.zeros(3, dtype=torch.int64, **place),
        *torch.zeros((3, 1), dtype=torch.int64, **place).unbind(0), table,
    )  # fmt: skip
    assert table[2, 3] == 77

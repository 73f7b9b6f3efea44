"""The kernels of multi-head latent attention against a loop over tokens in float64."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.mla_cases import LATENT, ROPE, MlaCase

from lightllm.ops.triton.mla_decode_attention import mla_decode_attention
from lightllm.ops.triton.mla_prefill_attention import mla_context, mla_prefill_attention

KERNELS = SimpleNamespace(
    mla_decode_attention=mla_decode_attention,
    mla_context=mla_context,
    mla_prefill_attention=mla_prefill_attention,
)


def check(case: MlaCase, num_sms: int = 8, rounds: int = 1, expanded: int = 1 << 30) -> None:
    """rounds: how often with one metadata. Intermediate results are rounded to the dtype as well."""
    metadata = case.slots.metadata(DEVICE, num_sms)
    expected = case.expected()
    for _ in range(rounds):
        assert_close(case.computed(KERNELS, metadata, DEVICE, expanded), expected, factor=3)


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, itertools.cycle(["run", "shuffled"]))))
def test_decode_and_prefill_side_by_side(dtype: torch.dtype, layout: str) -> None:
    check(MlaCase([40, 1, 129, 7, 25, 33, 1], [1, 1, 1, 1, 25, 10, 1], 4, layout, dtype=dtype), rounds=2)


def test_prefill_alone_and_decode_alone() -> None:
    check(MlaCase([60, 50], [40, 50], 0, "shuffled"))
    check(MlaCase([17, 64], [1, 1], 2, "shuffled"))


def test_decode_entries_of_one_to_four_tokens() -> None:
    check(MlaCase([40, 4, 129, 1, 25], [2, 4, 3, 1, 9], 4, "shuffled"), rounds=2)


@pytest.mark.parametrize(
    "heads", [1, pytest.param(8, marks=pytest.mark.slow), 17, pytest.param(71, marks=pytest.mark.slow)]
)
def test_heads(heads: int) -> None:
    check(MlaCase([40, 3, 19, 1], [1, 1, 5, 1], 2, "shuffled", heads))


@pytest.mark.parametrize("num_sms", [1, 64])
def test_a_batch_of_33(num_sms: int) -> None:
    check(MlaCase([1 + i for i in range(33)], [1] * 33, 33, "shuffled", heads=2), num_sms)


@pytest.mark.parametrize("expanded", [1, 60])
def test_contexts_may_be_expanded_some_at_a_time(expanded: int) -> None:
    check(MlaCase([9, 40, 25, 33, 1, 20], [1, 3, 25, 10, 1, 2], 1, "shuffled"), expanded=expanded)


def test_the_contexts_of_prefill_entries_lie_one_after_another() -> None:
    case = MlaCase([3, 20, 70], [1, 4, 70], 1, "shuffled")
    metadata = case.slots.metadata(DEVICE)
    slots = [slot for table in case.slots.tables[1:] for slot in table]
    assert torch.equal(mla_context(case.layer_on(DEVICE), metadata).cpu(), case.kv[slots, 0])


def test_padding_entries_read_only_the_hold_slot() -> None:
    case = MlaCase([5, 1, 1], [1, 1, 1], 3)
    case.kv[-1] = 2.0
    case.slots.rows[1:] = [0, 0]
    out = torch.full((3, 5, LATENT), float("nan"), device=DEVICE)
    q = torch.randn(3, 5, LATENT + ROPE, device=DEVICE)
    mla_decode_attention(q, case.layer_on(DEVICE), case.slots.metadata(DEVICE), 0.2, out)
    torch.testing.assert_close(out[1:].cpu(), torch.full((2, 5, LATENT), 2.0))


def test_slots_beyond_32_bit_offsets() -> None:
    """300,000 slots with a stride of 8,192: their offsets pass 2^31. Only the last ones are real memory."""
    slots = 300_000
    case = MlaCase([3, 3], [1, 2], 1, dtype=torch.float16)
    kv = torch.empty((slots, 1, 8192), dtype=torch.float16, device=DEVICE)[:, :, : LATENT + ROPE]
    for table, row in zip(case.slots.tables, case.slots.rows):
        places = [slots - 6 + slot - 3 for slot in table]
        kv[places] = case.kv[table].to(DEVICE)
        case.slots.req_to_token[row, :3] = torch.tensor(places, dtype=torch.int32)
    expected, case.kv = case.expected(), kv
    assert_close(case.computed(KERNELS, case.slots.metadata(DEVICE), DEVICE), expected, factor=3)

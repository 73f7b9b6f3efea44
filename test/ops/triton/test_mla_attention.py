"""The kernels of multi-head latent attention against a loop over tokens in float64."""

from types import SimpleNamespace

import pytest
import torch
from support.kernels import DEVICE, assert_close
from support.mla_cases import MlaCase

from lightllm.ops.triton.mla_decode_attention import mla_decode_attention
from lightllm.ops.triton.mla_prefill_attention import mla_context, mla_prefill_attention

KERNELS = SimpleNamespace(
    mla_decode_attention=mla_decode_attention,
    mla_context=mla_context,
    mla_prefill_attention=mla_prefill_attention,
)


@pytest.mark.parametrize("layout", ["run", "shuffled"])
def test_decode_and_prefill_side_by_side(layout: str) -> None:
    case = MlaCase([40, 1, 129, 7, 25, 33, 1], [1, 1, 1, 1, 25, 10, 1], 4, layout)
    plan = case.slots.gpu_plan(DEVICE, num_sms=8)
    for _ in range(2):
        assert_close(case.computed(KERNELS, plan, DEVICE), case.expected(), factor=3)


def test_prefill_alone_and_decode_alone() -> None:
    for case in (MlaCase([60, 50], [40, 50], 0, "shuffled"), MlaCase([17, 64], [1, 1], 2, "shuffled")):
        result = case.computed(KERNELS, case.slots.gpu_plan(DEVICE), DEVICE)
        assert_close(result, case.expected(), factor=3)


def test_the_contexts_of_prefill_entries_lie_one_after_another() -> None:
    case = MlaCase([3, 20, 70], [1, 4, 70], 1, "shuffled")
    plan = case.slots.gpu_plan(DEVICE)
    slots = [slot for table in case.slots.tables[1:] for slot in table]
    assert torch.equal(mla_context(case.kv.to(DEVICE), plan).cpu(), case.kv[slots, 0])

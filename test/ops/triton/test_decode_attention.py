"""The decode attention kernel against a loop over tokens and heads in float64."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from support.attention_cases import FORMS, WITHIN_OTHERS, AttentionCase
from support.kernels import DEVICE, DTYPES, assert_close

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.triton.attention_parts import decode_parts
from lightllm.ops.triton.decode_attention import decode_attention, resident_programs


class Case(AttentionCase):
    def compute(self, metadata: AttentionMetadata) -> torch.Tensor:
        q = self.q.to(DEVICE)
        out = torch.full_like(q, float("nan"))
        decode_attention(AttentionCall(q, self.layer_on(DEVICE), metadata, self.spec_on(DEVICE), out))
        assert out[self.num_decode_tokens :].isnan().all(), "only the decode entries' rows are written"
        return out[: self.num_decode_tokens]

    def check(self, num_sms: int = 8, layers: int = 1) -> None:
        """layers: how often with one metadata."""
        metadata = self.metadata(DEVICE, num_sms)
        expected = self.expected()[: self.num_decode_tokens]
        for _ in range(layers):
            assert_close(self.compute(metadata).cpu(), expected)


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, itertools.cycle(["run", "shuffled"]))))
def test_ragged_contexts_beside_a_prefill_chunk(dtype: torch.dtype, layout: str) -> None:
    Case([1, 129, 64, 2, 37, 90], [1, 1, 1, 1, 1, 5], 5, layout, dtype=dtype).check()


@pytest.mark.parametrize("heads", [(1, 1), (8, 8), (8, 2), (10, 2), (7, 1), (71, 1), (16, 2)])
def test_heads_and_groups(heads: tuple[int, int]) -> None:
    Case([70, 3], [1, 1], 2, "shuffled", heads=heads).check()


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
def test_head_dims(head_dim: int) -> None:
    Case([70, 3], [1, 1], 2, "shuffled", head_dim=head_dim, dtype=torch.float16).check()


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.slow if form in WITHIN_OTHERS else ()) for form in FORMS]
)
def test_every_form_of_score(form: str) -> None:
    Case([70, 1, 17, 18, 7, 8], [1] * 6, 6, "shuffled", form=form).check(num_sms=16)


@pytest.mark.parametrize("form", ["plain", pytest.param("window", marks=pytest.mark.slow), "everything"])
def test_entries_of_one_to_four_tokens_beside_a_prefill_chunk(form: str) -> None:
    kv_lens, q_lens = [70, 4, 17, 1, 90, 33], [3, 4, 1, 1, 2, 5]
    Case(kv_lens, q_lens, 5, "shuffled", form=form).check(num_sms=16, layers=2)


@pytest.mark.parametrize("num_sms", [1, 64])
def test_a_batch_of_33(num_sms: int) -> None:
    Case([1 + i for i in range(33)], [1] * 33, 33, "shuffled", heads=(2, 1)).check(num_sms)


def test_one_context_in_many_parts() -> None:
    metadata = Case([400], [1], 1, "shuffled", heads=(2, 1), form="sinks").metadata(DEVICE, 64)
    assert int(decode_parts(metadata, 0, 1, 16)[0].first[1]) == 25
    Case([400], [1], 1, "shuffled", heads=(2, 1), form="sinks").check(64)


@pytest.mark.parametrize(("resident", "parts"), [(2, 7), (3, 11)])
def test_a_context_is_cut_into_as_many_parts_as_programs_run_at_once(resident: int, parts: int) -> None:
    """132 multiprocessors, 32 KV heads and one entry: 8 or 12 places for parts, one of which is kept for rounding up."""
    metadata = Case([4096], [1], 1, heads=(2, 1)).metadata(DEVICE, 132)
    assert int(decode_parts(metadata, 0, 32, 64, resident)[0].first[1]) == parts


def test_three_programs_are_resident_where_registers_and_shared_memory_allow_it() -> None:
    """As docs/kernels.json says of them: bytes of shared memory and registers of a program, at 65,536 registers and 227 KB."""
    cases = json.loads((Path(__file__).parents[3] / "docs/kernels.json").read_text())["cases"]
    checked = 0
    for case in cases:
        if (
            case["kernel"] != "decode_attention_kernel"
            or "90" not in case["registers"]
            or "float32" in case["case"]
        ):
            continue
        warps = case["launch"]["num_warps"]
        resident = resident_programs(90, warps, 2)
        assert resident * (case["shared"]["90"] + 1024) <= 228 << 10
        assert resident * warps * 32 * -(-case["registers"]["90"] // 8) * 8 <= 1 << 16
        checked += resident == 3
    assert checked > 5


def test_layers_share_a_plan_whose_counters_are_left_as_they_were_found() -> None:
    Case([70, 1, 90, 33], [1] * 4, 4, "shuffled").check(num_sms=16, layers=3)


def test_queries_and_outputs_may_be_slices_of_wider_tensors() -> None:
    case = Case([20, 11], [1, 1], 2)
    wide = torch.cat((case.q, torch.full_like(case.q, float("nan"))), dim=1).to(DEVICE)
    out = torch.full_like(wide, 7.0)
    kv, metadata = case.layer_on(DEVICE), case.metadata(DEVICE)
    decode_attention(AttentionCall(wide[:, :8], kv, metadata, case.attention_spec, out[:, 8:]))
    assert_close(out[:, 8:].cpu(), case.expected())
    assert torch.equal(out[:, :8], torch.full_like(out[:, :8], 7.0))


def test_large_scores_do_not_overflow() -> None:
    case = Case([40, 25], [1, 1], 2)
    case.q *= 1000
    assert case.compute(case.metadata(DEVICE, 8)).isfinite().all()


def test_padding_entries_read_only_the_hold_slot() -> None:
    case = Case([5, 1, 1], [1, 1, 1], 3)
    hold = case.kv.shape[0] - 1
    case.kv[hold] = 2.0
    case.rows[1:] = [0, 0]
    result = case.compute(case.metadata(DEVICE))
    torch.testing.assert_close(result[1:].cpu(), torch.full((2, 8, 16), 2.0))


def test_slots_beyond_32_bit_offsets() -> None:
    """300,000 slots of 64 heads of 128: their offsets pass 2^31. Only the last ones are real memory."""
    slots, heads, head_dim = 300_000, 32, 128
    kv = torch.empty((slots, 2 * heads, head_dim), dtype=torch.float16, device=DEVICE)
    case = Case([3], [1], 1, heads=(heads, heads), head_dim=head_dim, dtype=torch.float16)
    kv[-3:] = case.kv[3:6].to(DEVICE)
    expected, case.kv = case.expected(), kv
    case.tables = [[slots - 3, slots - 2, slots - 1]]
    case.req_to_token[case.rows[0], :3] = torch.tensor(case.tables[0], dtype=torch.int32)
    assert_close(case.compute(case.metadata(DEVICE)).cpu(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("heads", [(8, 8), (14, 2), (48, 1)])
@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_the_whole_grid(form: str, heads: tuple[int, int], head_dim: int) -> None:
    kv_lens = [300, 1, 129, 128, 127, 64, 65, 511]
    Case(kv_lens, [1] * 8, 8, "shuffled", heads, head_dim, torch.float16, form).check(num_sms=12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["plain", pytest.param("everything", marks=pytest.mark.slow)])
def test_codes_with_scales(dtype: torch.dtype, form: str) -> None:
    case = Case([70, 1, 37, 90], [1, 1, 1, 1], 4, "shuffled", (8, 2), 32, dtype, form, "int8kv")
    case.check()

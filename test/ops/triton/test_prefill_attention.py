"""The prefill attention kernel against a loop over tokens and heads in float64."""

import itertools

import pytest
import torch
from support.attention_cases import FORMS, WITHIN_OTHERS, AttentionCase
from support.kernels import DEVICE, DTYPES, assert_close

from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.kv_layer import KvLayer
from lightllm.ops.triton.prefill_attention import prefill_attention


class Case(AttentionCase):
    def compute(self, dense: bool = False) -> torch.Tensor:
        q, kv = self.q.to(DEVICE), self.layer_on(DEVICE)
        out = torch.full_like(q, float("nan"))
        metadata, own = self.metadata(DEVICE), None
        if dense:
            assert metadata.no_prefix
            own = self.dense()
            kv = KvLayer(torch.full_like(kv.data, float("nan")), kv.kv_heads)
        prefill_attention(AttentionCall(q, kv, metadata, self.spec_on(DEVICE), out, own))
        assert out[: self.num_decode].isnan().all(), "decode entries' rows are not written"
        return out[self.num_decode :].cpu()

    def dense(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the batch's own tokens, as slices of one tensor; those of decode entries are NaN."""
        wide = torch.full((len(self.q), 3 * self.heads[1], self.head_dim), float("nan"), dtype=self.dtype)
        tokens = torch.tensor([slot for table in self.tables[self.num_decode :] for slot in table])
        wide[self.num_decode :, self.heads[1] :] = self.kv[tokens]
        return wide.to(DEVICE).split(self.heads[1], 1)[1:]

    def check(self, dense: bool = False) -> None:
        assert_close(self.compute(dense), self.expected()[self.num_decode :])


@pytest.mark.parametrize(("dtype", "layout"), list(zip(DTYPES, itertools.cycle(["run", "shuffled"]))))
def test_chunks_with_and_without_a_prefix_beside_decode_entries(dtype: torch.dtype, layout: str) -> None:
    Case([9, 40, 129, 1, 90, 2], [1, 1, 129, 1, 7, 1], 2, layout, dtype=dtype).check()


@pytest.mark.parametrize(
    ("heads", "dense"),
    [((1, 1), True), ((8, 8), False), ((10, 2), True), ((7, 1), False), ((71, 1), True), ((16, 2), False)],
)
def test_heads_and_groups(heads: tuple[int, int], dense: bool) -> None:
    Case([5, 37, 1], [1, 37, 1], 1, "shuffled", heads=heads).check(dense)


@pytest.mark.parametrize(("head_dim", "dense"), [(64, 0), (80, 1), (96, 0), (128, 1), (192, 0), (256, 1)])
def test_head_dims(head_dim: int, dense: bool) -> None:
    case = Case([37, 3], [37, 3], 0, "shuffled", heads=(2, 1), head_dim=head_dim, dtype=torch.float16)
    case.check(dense)


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.slow if form in WITHIN_OTHERS else ()) for form in FORMS]
)
def test_every_form_of_score(form: str) -> None:
    Case([70, 1, 90], [33, 1, 50], 0, "shuffled", heads=(4, 2), form=form).check()


def test_a_form_with_everything_over_dense_keys() -> None:
    Case([70, 1, 90], [70, 1, 90], 0, "shuffled", heads=(4, 2), form="everything").check(dense=True)


def test_a_batch_of_33_chunks() -> None:
    kv_lens = [1 + i for i in range(33)]
    Case(kv_lens, [1 + kv_len // 2 for kv_len in kv_lens], 0, "shuffled", heads=(2, 1)).check()


def test_dense_keys_are_not_used_when_a_chunk_has_a_prefix() -> None:
    case = Case([9, 20], [9, 5], 0)
    q, out = case.q.to(DEVICE), torch.full_like(case.q, float("nan")).to(DEVICE)
    wrong = torch.full((len(q), 2, 16), float("nan"), device=DEVICE)
    kv, metadata = case.layer_on(DEVICE), case.metadata(DEVICE)
    prefill_attention(AttentionCall(q, kv, metadata, case.attention_spec, out, (wrong, wrong)))
    assert_close(out.cpu(), case.expected())


def test_queries_and_outputs_may_be_slices_of_wider_tensors() -> None:
    case = Case([20, 11], [20, 5], 0)
    wide = torch.cat((case.q, torch.full_like(case.q, float("nan"))), dim=1).to(DEVICE)
    out = torch.full_like(wide, 7.0)
    kv, metadata = case.layer_on(DEVICE), case.metadata(DEVICE)
    prefill_attention(AttentionCall(wide[:, :8], kv, metadata, case.attention_spec, out[:, 8:]))
    assert_close(out[:, 8:].cpu(), case.expected())
    assert torch.equal(out[:, :8], torch.full_like(out[:, :8], 7.0))


def test_large_scores_do_not_overflow() -> None:
    case = Case([40, 25], [40, 5], 0)
    case.q *= 1000
    assert case.compute().isfinite().all()


def test_slots_beyond_32_bit_offsets() -> None:
    """300,000 slots of 64 heads of 128: their offsets pass 2^31. Only the last ones are real memory."""
    slots, heads, head_dim = 300_000, 32, 128
    kv = torch.empty((slots, 2 * heads, head_dim), dtype=torch.float16, device=DEVICE)
    case = Case([3], [2], 0, heads=(heads, heads), head_dim=head_dim, dtype=torch.float16)
    kv[-3:] = case.kv[3:6].to(DEVICE)
    expected, case.kv = case.expected(), kv
    case.tables = [[slots - 3, slots - 2, slots - 1]]
    case.req_to_token[case.rows[0], :3] = torch.tensor(case.tables[0], dtype=torch.int32)
    assert_close(case.compute(), expected)


@pytest.mark.parametrize("dense", [False, True])
def test_a_chunk_in_the_hold_row_reads_only_the_hold_slot(dense: bool) -> None:
    """As rounds of padding are, with which memory is measured and a start is warmed up."""
    case = Case([5, 40], [5, 40], 0)
    hold = case.kv.shape[0] - 1
    case.kv[hold] = 2.0
    case.rows[:] = [0, 0]
    case.tables = [[hold] * 5, [hold] * 40]
    torch.testing.assert_close(case.compute(dense), torch.full((45, 8, 16), 2.0))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 4), 128), ((7, 1), 64), ((6, 2), 80), ((2, 1), 256)])
def test_the_whole_grid(form: str, dense: bool, heads: tuple[int, int], head_dim: int) -> None:
    kv_lens = [1, 300, 129, 128, 257]
    q_lens = kv_lens if dense else [1, 140, 129, 2, 200]
    Case(kv_lens, q_lens, 0, "shuffled", heads, head_dim, torch.float16, form).check(dense)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["plain", pytest.param("everything", marks=pytest.mark.slow)])
def test_codes_with_scales(dtype: torch.dtype, form: str) -> None:
    Case([40, 3, 70, 1], [1, 3, 17, 1], 1, "shuffled", (8, 2), 32, dtype, form, "int8kv").check()

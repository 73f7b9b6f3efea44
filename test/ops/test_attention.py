"""Attention by slots on a CPU against a loop over tokens and heads in float64."""

import pytest
import torch
from support.attention_cases import FORMS, LONG, SHORT, AttentionCase

from lightllm.layers.attention import attention
from lightllm.ops.attention_plan import AttentionPlan, plan_on_cpu

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


class Case(AttentionCase):
    def plan(self, token_bytes: int = LONG) -> AttentionPlan:
        return plan_on_cpu(
            self.rows,
            self.q_lens,
            self.kv_lens,
            self.num_decode,
            self.req_to_token,
            self.q.dtype,
            token_bytes,
        )

    def check(self) -> None:
        """Decode entries one by one, and (four or more of them) together."""
        expected = self.expected().view(len(self.q), -1)
        tolerance = TOLERANCE[self.q.dtype]
        for token_bytes in (LONG, SHORT):
            result = attention(self.q, self.kv, self.plan(token_bytes), self.attention_spec)
            torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_short_contexts_are_computed_together_beside_prefills_and_long_ones_are_not() -> None:
    case = Case([9, 2, 37, 5, 30], [1, 1, 1, 1, 12], 4, "shuffled")
    assert case.plan(LONG).padded is None and len(case.plan(LONG).decode) == 4
    plan = case.plan(SHORT)
    assert (
        plan.padded is not None and plan.padded.length == 37 and plan.decode == [] and len(plan.prefill) == 1
    )
    case.check()
    Case([21] * 5, [1] * 5, 5, "shuffled").check()


HEADS = [(8, 1), (8, 2), (8, 8), (6, 3)]
LAYOUTS = ["run", "shuffled", "reversed"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
def test_decode(layout: str, heads: tuple[int, int]) -> None:
    Case([1, 2, 37, 5, 130], [1] * 5, 5, layout, heads).check()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("heads", HEADS)
def test_prefill_with_and_without_a_prefix(layout: str, heads: tuple[int, int]) -> None:
    Case([19, 1, 30, 2, 64], [19, 1, 7, 1, 40], 0, layout, heads).check()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_decode_and_prefill_side_by_side_in_every_dtype(dtype: torch.dtype) -> None:
    Case([40, 1, 25, 33], [1, 1, 25, 10], 2, "shuffled", dtype=dtype).check()
    Case([40, 1, 25, 33], [1, 1, 25, 10], 2, "run", dtype=dtype).check()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_of_33(layout: str) -> None:
    Case(list(range(1, 34)), [1] * 33, 33, layout).check()


@pytest.mark.parametrize("head_dim", [8, 24, 64, 128])
def test_head_dims(head_dim: int) -> None:
    Case([50, 20], [1, 12], 1, head_dim=head_dim).check()


def test_queries_may_be_a_slice_of_a_wider_tensor() -> None:
    case = Case([20, 11], [1, 5], 1)
    case.q = torch.cat((case.q, torch.full_like(case.q, float("nan"))), dim=1)[:, :8]
    case.check()


def test_large_scores_do_not_overflow() -> None:
    case = Case([40, 25], [1, 9], 1)
    case.q *= 1000
    assert attention(case.q, case.kv, case.plan(), case.attention_spec).isfinite().all()


def test_hold_slots_shared_by_padding_entries_read_only_the_hold_slot() -> None:
    case = Case([5], [1], 1)
    hold = case.kv.shape[0] - 1
    case.kv[hold] = 2.0
    plan = plan_on_cpu([1, 0, 2], [1, 1, 1], [5, 1, 1], 3, case.req_to_token, torch.float32, LONG)
    q = torch.cat((case.q, torch.randn(2, 8, 16)))
    result = attention(q, case.kv, plan, case.attention_spec)
    torch.testing.assert_close(result[1:], torch.full((2, 128), 2.0))


def test_a_run_of_slots_is_read_in_place_and_anything_else_is_gathered() -> None:
    run = Case([5, 9], [1, 9], 1, "run").plan()
    assert [entry.slots for entry in run.decode + run.prefill] == [None, None] and run.longest_gather == 0
    table = torch.tensor([[0, 1, 3, 2, 4]], dtype=torch.int32)
    swapped = plan_on_cpu([0], [1], [5], 1, table, torch.float32, LONG)
    assert swapped.decode[0].slots is not None and swapped.decode[0].slots.tolist() == [0, 1, 3, 2, 4]
    assert swapped.longest_gather == 5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["run", "shuffled"])
def test_every_form_of_score_in_decode_and_prefill(form: str, layout: str) -> None:
    Case([40, 1, 8, 7, 25, 33, 6, 30], [1, 1, 1, 1, 25, 10, 6, 1], 4, layout, form=form).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_form_with_everything_in_every_dtype(dtype: torch.dtype) -> None:
    Case([40, 1, 25, 33], [1, 1, 25, 10], 2, "shuffled", dtype=dtype, form="everything").check()
    Case([40] * 4, [1] * 4, 4, "shuffled", dtype=dtype, form="everything").check()


def test_long_chunks_are_computed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.ops.torch.attention._SCORES", 1)
    Case([60, 50], [40, 50], 0, form="everything").check()
    Case([60, 50], [40, 50], 0, form="window").check()

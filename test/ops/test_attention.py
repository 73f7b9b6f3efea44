"""Attention by slots on a CPU against a loop over tokens and heads in float64."""

from unittest import mock

import pytest
import torch
from support.attention_cases import FORMS, AttentionCase

from lightllm.ops import attention_contexts
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.torch import TorchAttention
from lightllm.ops.attention_contexts import Contexts, contexts_of
from lightllm.ops.kv_codes import FORMATS

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


CPU = torch.device("cpu")
BACKENDS = make_attention_backends("triton", CPU)
TORCH = AttentionBackends(TorchAttention(), TorchAttention(), TorchAttention())
ALONE, TOGETHER = 0, 1 << 30
"""Bytes of a context up to which it is copied to be computed beside others: none is, all are."""


class Case(AttentionCase):
    def contexts(self, copied: int = ALONE) -> Contexts:
        with mock.patch.object(attention_contexts, "PADDED_BYTES", copied):
            return contexts_of(self.metadata(CPU), self.q.dtype, self.layer_on(CPU).bytes_per_slot)

    def compute(self, backends: AttentionBackends = BACKENDS, copied: int = ALONE) -> torch.Tensor:
        with mock.patch.object(attention_contexts, "PADDED_BYTES", copied):
            return backends.attend(self.q, self.layer_on(CPU), self.metadata(CPU), self.attention_spec)

    def check(self) -> None:
        """The kernel; torch with decode entries one by one, and (four or more of them) together."""
        expected = self.expected().view(len(self.q), -1)
        tolerance = TOLERANCE[self.q.dtype]
        for result in (self.compute(), self.compute(TORCH), self.compute(TORCH, TOGETHER)):
            torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_short_contexts_are_computed_together_beside_prefills_and_long_ones_are_not() -> None:
    case = Case([9, 2, 37, 5, 30], [1, 1, 1, 1, 12], 4, "shuffled")
    alone, together = case.contexts(ALONE), case.contexts(TOGETHER)
    assert alone.padded is None and len(alone.decode) == 4
    assert together.padded is not None and together.padded.length == 37
    assert together.decode == [] and len(together.prefill) == 1
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
    assert case.compute().isfinite().all()


def test_hold_slots_shared_by_padding_entries_read_only_the_hold_slot() -> None:
    case = Case([5, 1, 1], [1, 1, 1], 3)
    case.kv[-1] = 2.0
    case.rows[1:] = [0, 2]
    torch.testing.assert_close(case.compute()[1:], torch.full((2, 128), 2.0))


def test_a_run_of_slots_is_read_in_place_and_anything_else_is_gathered() -> None:
    run = Case([5, 9], [1, 9], 1, "run").contexts()
    assert [entry.slots for entry in run.decode + run.prefill] == [None, None] and run.longest_gather == 0
    case = Case([5], [1], 1, "run")
    case.req_to_token[case.rows[0], :5] = torch.tensor([0, 1, 3, 2, 4], dtype=torch.int32)
    swapped = case.contexts()
    assert swapped.decode[0].slots is not None and swapped.decode[0].slots.tolist() == [0, 1, 3, 2, 4]
    assert swapped.longest_gather == 5


@pytest.mark.parametrize("form", ["plain", "window", "everything"])
def test_decode_entries_of_one_to_four_tokens_beside_a_prefill_chunk(form: str) -> None:
    Case([40, 4, 8, 1, 25, 33], [3, 4, 1, 1, 2, 10], 5, "shuffled", form=form).check()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["run", "shuffled"])
def test_every_form_of_score_in_decode_and_prefill(form: str, layout: str) -> None:
    Case([40, 1, 8, 7, 25, 33, 6, 30], [1, 1, 1, 1, 25, 10, 6, 1], 4, layout, form=form).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_form_with_everything_in_every_dtype(dtype: torch.dtype) -> None:
    Case([40, 1, 25, 33], [1, 1, 25, 10], 2, "shuffled", dtype=dtype, form="everything").check()
    Case([40] * 4, [1] * 4, 4, "shuffled", dtype=dtype, form="everything").check()


@pytest.mark.parametrize("kv_type", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_score_over_codes(form: str, kv_type: str) -> None:
    q_lens = [1, 1, 1, 1, 25, 10, 6, 1]
    Case([40, 1, 8, 7, 25, 33, 6, 30], q_lens, 4, "shuffled", (8, 2), 32, form=form, kv_type=kv_type).check()


@pytest.mark.parametrize("kv_type", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_in_every_dtype_of_queries(layout: str, dtype: torch.dtype, kv_type: str) -> None:
    for head_dim in (16, 32, 64, 128):
        sizes = {"heads": (8, 2), "head_dim": head_dim, "dtype": dtype, "kv_type": kv_type}
        Case([300, 1, 25, 70], [1, 1, 25, 10], 2, layout, **sizes).check()


def test_long_chunks_are_computed_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightllm.ops.attention_backends.torch._SCORES", 1)
    Case([60, 50], [40, 50], 0, form="everything").check()
    Case([60, 50], [40, 50], 0, form="window").check()

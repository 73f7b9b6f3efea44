"""The CPU kernel for decoding: long contexts in pieces, results that depend on a token's own context alone, NaN.

`test/ops/test_attention.py` compares it with the reference in all forms and layouts.
"""

from collections.abc import Iterator

import pytest
import torch
from support.attention_cases import AttentionCase

from lightllm.ops.attention_backends.cpu import CpuAttention
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.cpu.calls.decode_attention import BLOCK, SPLIT
from lightllm.ops.cpu.library import load_kernels

CPU = torch.device("cpu")
LENGTHS = [1, BLOCK - 1, BLOCK + 1, SPLIT, SPLIT + 1, 3 * SPLIT + 5]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def compute(case: AttentionCase) -> torch.Tensor:
    out = torch.full_like(case.q, float("nan"))
    CpuAttention(load_kernels()).decode(
        AttentionCall(case.q, case.layer_on(CPU), case.metadata(CPU), case.attention_spec, out)
    )
    return out


@pytest.mark.parametrize("form", ["plain", "window wider than every context", "everything"])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (5, 1)])
def test_contexts_of_several_pieces(form: str, heads: tuple[int, int]) -> None:
    case = AttentionCase(LENGTHS, [1] * len(LENGTHS), len(LENGTHS), "shuffled", heads, 24, form=form)
    torch.testing.assert_close(compute(case).double(), case.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_token_has_the_same_result_alone_and_among_others_and_with_any_number_of_threads(
    dtype: torch.dtype, threads: None
) -> None:
    case = AttentionCase(LENGTHS, [1] * len(LENGTHS), len(LENGTHS), "shuffled", (6, 2), 32, dtype)
    torch.set_num_threads(1)
    together = compute(case)
    torch.set_num_threads(3)
    for _ in range(5):
        assert torch.equal(compute(case), together)
    for entry, length in enumerate(LENGTHS):
        alone = AttentionCase([length], [1], 1, "run", (6, 2), 32, dtype)
        alone.kv[alone.tables[0]] = case.kv[case.tables[entry]]
        alone.q = case.q[entry : entry + 1]
        assert torch.equal(compute(alone)[0], together[entry])


def test_tokens_of_one_entry_see_their_context_up_to_themselves() -> None:
    case = AttentionCase([40, SPLIT + 3], [3, 2], 2, "shuffled")
    torch.testing.assert_close(compute(case).double(), case.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_reaches_the_result_of_its_own_entry_and_no_other(bad: float) -> None:
    case = AttentionCase([30, 200, 30], [1, 1, 1], 3)
    good = compute(case)
    case.kv[case.tables[1][77], 0, 5] = bad
    result = compute(case)
    assert not result[1].isfinite().all()
    assert torch.equal(result[0], good[0]) and torch.equal(result[2], good[2])

"""The CPU kernel for attention in blocks: as near to float64 as torch's bfloat16, results that depend on a token's own
context alone, NaN, and the matrix unit in the state in which it was."""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from support.attention_cases import AttentionCase

from lightllm.ops.attention_backends.cpu import CpuAttention
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_backends.torch import TorchAttention
from lightllm.ops.cpu import block_attention
from lightllm.ops.cpu.calls import block_attention as at
from lightllm.ops.cpu.calls.block_attention import BLOCK, PIECE
from lightllm.ops.cpu.decode_tasks import decode_tasks
from lightllm.ops.cpu.library import load_kernels
from lightllm.ops.cpu_kind import CpuKind
from lightllm.ops.linear import pack_linear

CPU, BF16 = torch.device("cpu"), torch.bfloat16
KERNELS = load_kernels()
pytestmark = pytest.mark.skipif(
    "block_attention_bfloat16" not in KERNELS, reason="no instructions for bfloat16: torch computes"
)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def compute(case: AttentionCase, backend: object = None) -> torch.Tensor:
    out = torch.full_like(case.q, float("nan"))
    call = AttentionCall(case.q, case.layer_on(CPU), case.metadata(CPU), case.attention_spec, out)
    (backend or CpuAttention(KERNELS)).prefill(call)
    return out


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Root of the mean square."""
    return (result.double() - expected).square().mean().sqrt().item()


@pytest.mark.parametrize(
    "form",
    ["plain", "window", "window of one", "window wider than every context", "softcap", "alibi", "sinks", "everything"],
)  # fmt: skip
@pytest.mark.parametrize(("heads", "head_dim"), [((8, 2), 64), ((5, 1), 24), ((3, 3), 128), ((4, 1), 80)])
def test_it_is_as_near_to_the_reference_as_torch(form: str, heads: tuple[int, int], head_dim: int) -> None:
    kv_lens, q_lens = [150, BLOCK, BLOCK + 1, 33, 1, 260], [150, 20, BLOCK + 1, 1, 1, 130]
    case = AttentionCase(kv_lens, q_lens, 0, "shuffled", heads, head_dim, BF16, form=form)
    expected, result = case.expected(), compute(case)
    # torch rounds what it hands over; beside that the weights are rounded here, to 2**-9 of each.
    assert error(result, expected) <= 1.5 * error(compute(case, TorchAttention), expected) + 1e-6
    torch.testing.assert_close(result.double(), expected, rtol=2e-2, atol=2e-2)


def chunk(case: AttentionCase, first: int, last: int) -> torch.Tensor:
    """Tokens first .. last - 1 of a case of one entry, as a chunk of their own."""
    alone = AttentionCase([last], [last - first], 0, "run", (6, 2), 32, BF16, form=case.form)
    alone.kv[alone.tables[0]] = case.kv[case.tables[0][:last]]
    alone.q = case.q[first:last]
    return compute(alone)


@pytest.mark.parametrize("form", ["plain", "window", "everything"])
def test_a_token_has_the_same_result_however_its_prompt_is_cut(form: str) -> None:
    length = 5 * BLOCK + 7
    case = AttentionCase([length], [length], 0, "shuffled", (6, 2), 32, BF16, form=form)
    whole = compute(case)
    for borders in ([0, 1, 64, length], [0, 100, 101, 290, length], list(range(0, length, 37)) + [length]):
        parts = [chunk(case, first, last) for first, last in zip(borders, borders[1:])]
        assert torch.equal(torch.cat(parts), whole)


def test_and_among_others_and_with_any_number_of_threads(threads: None) -> None:
    lengths = [1, BLOCK - 1, BLOCK + 1, 200]
    case = AttentionCase(lengths, lengths, 0, "shuffled", (6, 2), 32, BF16)
    torch.set_num_threads(1)
    together = compute(case)
    torch.set_num_threads(3)
    for _ in range(5):
        assert torch.equal(compute(case), together)
    first = 0
    for entry, length in enumerate(lengths):
        alone = AttentionCase([length], [length], 0, "run", (6, 2), 32, BF16)
        alone.kv[alone.tables[0]] = case.kv[case.tables[entry]]
        alone.q = case.q[first : first + length]
        assert torch.equal(compute(alone), together[first : first + length])
        first += length


def test_queries_may_be_a_slice_of_a_wider_tensor_and_stand_behind_decode_entries() -> None:
    case = AttentionCase([40, 9, 70], [1, 1, 50], 2, "shuffled", (8, 2), 64, BF16)
    expected = case.expected()[2:]
    case.q = torch.cat((case.q, torch.full_like(case.q, float("nan"))), dim=1)[:, :8]
    torch.testing.assert_close(compute(case)[2:].double(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 3], ids=["key", "value"])
def test_a_number_that_is_none_reaches_no_token_before_its_block_and_no_other_entry(
    bad: float, place: int
) -> None:
    case = AttentionCase([30, 300, 30], [30, 300, 30], 0, "shuffled", (4, 2), 32, BF16)
    good = compute(case)
    case.kv[case.tables[1][2 * BLOCK + 9], place, 5] = bad
    result = compute(case)
    assert not result[30 + 2 * BLOCK + 9].isfinite().all()
    assert torch.equal(result[: 30 + 2 * BLOCK], good[: 30 + 2 * BLOCK])
    assert torch.equal(result[-30:], good[-30:])


def test_a_query_that_is_no_number_has_no_result_and_the_others_have_theirs() -> None:
    case = AttentionCase([90], [90], 0, "shuffled", (4, 2), 32, BF16)
    good = compute(case)
    case.q[50, 1, 3] = float("nan")
    result = compute(case)
    assert result[50, 1].isnan().all()
    result[50, 1] = good[50, 1]
    assert torch.equal(result, good)


def test_large_scores_do_not_overflow() -> None:
    case = AttentionCase([90], [90], 0, "shuffled", (4, 2), 32, BF16)
    case.q *= 1000
    assert compute(case).isfinite().all()


def test_products_of_others_that_use_the_matrix_unit_are_not_disturbed() -> None:
    case = AttentionCase([90], [90], 0, "shuffled", (4, 2), 32, BF16)
    generator = torch.Generator().manual_seed(1)
    linears = [
        (pack_linear(torch.randn(out, inputs, generator=generator).to(BF16), None), torch.randn(rows, inputs, generator=generator).to(BF16))
        for out, inputs, rows in ((256, 512, 64), (100, 72, 5), (48, 1024, 1))
    ]  # fmt: skip
    before, attended = [linear(x) for linear, x in linears], compute(case)
    for _ in range(5):
        for (linear, x), expected in zip(linears, before):
            assert torch.equal(linear(x), expected)
            assert torch.equal(compute(case), attended)


@pytest.mark.skipif(block_attention.chosen() == CpuKind.AMX, reason="decoding has a kernel of its own there")
@pytest.mark.parametrize("form", ["plain", "window", "everything"])
@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [
        ((6, 2), 64), ((12, 12), 128), ((8, 1), 64), ((4, 2), 96), ((8, 2), 128), ((5, 1), 64), ((12, 2), 128), ((7, 1), 32),
        ((18, 2), 160), ((2, 1), 40),
    ],
)  # fmt: skip
def test_a_token_that_is_decoded_has_the_bits_that_it_has_in_its_prompt(
    form: str, heads: tuple[int, int], head_dim: int
) -> None:
    length = 3 * PIECE + 7
    case = AttentionCase([length], [length], 0, "shuffled", heads, head_dim, BF16, form=form)
    whole = compute(case)
    lengths = [1, 2, BLOCK, BLOCK + 1, PIECE, PIECE + 1, 2 * PIECE + BLOCK, length - 1, length]
    together = AttentionCase(
        lengths, [1] * len(lengths), len(lengths), "shuffled", heads, head_dim, BF16, form=form
    )
    for entry, last in enumerate(lengths):
        together.kv[together.tables[entry]] = case.kv[case.tables[0][:last]]
    together.q = case.q[[last - 1 for last in lengths]]
    result = torch.full_like(together.q, float("nan"))
    backend = CpuAttention(KERNELS)
    layer, spec = together.layer_on(CPU), together.attention_spec
    backend.decode(AttentionCall(together.q, layer, together.metadata(CPU), spec, result))
    assert torch.equal(result, whole[[last - 1 for last in lengths]])
    for entry, last in enumerate(lengths):
        alone = AttentionCase([last], [1], 1, "run", heads, head_dim, BF16, form=form)
        alone.kv[alone.tables[0]] = case.kv[case.tables[0][:last]]
        alone.q, out = case.q[last - 1 : last], torch.full_like(case.q[:1], float("nan"))
        backend.decode(AttentionCall(alone.q, alone.layer_on(CPU), alone.metadata(CPU), spec, out))
        assert torch.equal(out[0], result[entry])


@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 128), ((8, 1), 64), ((6, 2), 40)])
def test_slots_may_lie_apart(heads: tuple[int, int], head_dim: int) -> None:
    """And what is between them is nobody's."""
    case = AttentionCase([300, 70, 1], [1, 30, 1], 1, "shuffled", heads, head_dim, BF16)
    layer, results = case.layer_on(CPU), []
    slots, vectors, _ = layer.data.shape
    memory = torch.full((slots, vectors * head_dim + 32), float("nan"), dtype=BF16)
    apart = memory[:, : vectors * head_dim].unflatten(1, (vectors, head_dim))
    apart.copy_(layer.data)
    for kv in (layer, dataclasses.replace(layer, data=apart)):
        out = torch.full_like(case.q, float("nan"))
        call = AttentionCall(case.q, kv, case.metadata(CPU), case.attention_spec, out)
        CpuAttention(KERNELS).decode(call)
        CpuAttention(KERNELS).prefill(call)
        results.append(out)
    assert torch.equal(*results) and not results[0].isnan().any()


def decoded(case: AttentionCase) -> torch.Tensor:
    out = torch.full_like(case.q, float("nan"))
    spec = case.attention_spec
    CpuAttention(KERNELS).decode(AttentionCall(case.q, case.layer_on(CPU), case.metadata(CPU), spec, out))
    return out


def with_shared_slots(lengths: list[int], shared: list[tuple[int, int]], **options: object) -> AttentionCase:
    """shared: of each entry, how many of its first slots are another's, and whose."""
    case = AttentionCase(lengths, [1] * len(lengths), len(lengths), "shuffled", dtype=BF16, **options)  # type: ignore[arg-type]
    for entry, (count, other) in enumerate(shared):
        case.tables[entry][:count] = case.tables[other][:count]
        case.req_to_token[case.rows[entry], :count] = torch.tensor(case.tables[entry][:count])
    return case


@pytest.mark.skipif(block_attention.chosen() == CpuKind.AMX, reason="decoding has a kernel of its own there")
@pytest.mark.parametrize("form", ["plain", "window", "wide window", "everything"])
@pytest.mark.parametrize(("heads", "head_dim"), [((6, 2), 64), ((12, 12), 32), ((16, 1), 80)])
def test_tokens_that_share_slots_have_the_bits_that_they_have_alone(
    form: str, heads: tuple[int, int], head_dim: int
) -> None:
    lengths = [3 * PIECE + 7, 3 * PIECE, 2 * PIECE + 1, 2 * PIECE, PIECE, PIECE + 90, 40, *[PIECE + 3] * 30]
    shared = [(0, 0), (2 * PIECE + 9, 0), (2 * PIECE, 0), (2 * PIECE, 1), (PIECE, 0), (PIECE - 1, 0), (40, 0)]
    shared += [(PIECE, 0)] * 12 + [(PIECE, 5)] * 3 + [(0, 0)] + [(PIECE, 0)] * 14
    options = {"heads": heads, "head_dim": head_dim, "form": "plain" if form == "wide window" else form}
    case = with_shared_slots(lengths, shared, **options)
    if form == "wide window":
        case.attention_spec = dataclasses.replace(case.attention_spec, window=PIECE + 30)
    result, expected = decoded(case), case.expected()
    torch.testing.assert_close(result.double(), expected, rtol=2e-2, atol=2e-2)
    for entry, length in enumerate(lengths):
        alone = AttentionCase([length], [1], 1, "run", dtype=BF16, **options)  # type: ignore[arg-type]
        alone.attention_spec = case.attention_spec
        alone.kv[alone.tables[0]] = case.kv[case.tables[entry]]
        alone.q = case.q[entry : entry + 1]
        assert torch.equal(decoded(alone)[0], result[entry])


def test_a_piece_that_tokens_share_is_one_task(threads: None) -> None:
    torch.set_num_threads(2)
    lengths = [2 * PIECE + 7] * 20
    shared = [(0, 0)] + [(2 * PIECE, 0)] * 18 + [(2 * PIECE - 1, 0)]
    case = with_shared_slots(lengths, shared, heads=(4, 2), head_dim=32)
    tasks = decode_tasks(case.metadata(CPU), (2, 2, 32), 0).table
    # Two of all, one of the last entry's own second piece, twenty ends.
    assert len(tasks) == 23 and sorted(tasks[:, at.TOKENS])[-2:] == [19, 20]

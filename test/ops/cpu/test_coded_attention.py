"""The CPU kernels for attention over keys and values of few bits: as near to float64 as torch's bfloat16, results that depend on a
token's own context alone, whether it is decoded or part of a chunk, and what is not finite."""

from collections.abc import Iterator

import pytest
import torch
from support.attention_cases import AttentionCase

from lightllm.ops.attention_backends.cpu import CpuAttention
from lightllm.ops.attention_backends.protocol import AttentionCall
from lightllm.ops.attention_backends.torch import TorchAttention
from lightllm.ops.cpu.calls.block_attention import BLOCK, PIECE
from lightllm.ops.cpu.library import load_kernels
from lightllm.ops.kv_codes import FORMATS

CPU, BF16 = torch.device("cpu"), torch.bfloat16
KERNELS = load_kernels()
KV_TYPE: list[str] = []
"""That of the test which runs."""
pytestmark = pytest.mark.skipif(
    "coded_attention_bfloat16" not in KERNELS, reason="no instructions for bfloat16: torch computes"
)


@pytest.fixture(params=FORMATS, autouse=True)
def kv_type(request: pytest.FixtureRequest) -> str:
    """Every test here is of every type."""
    KV_TYPE[:] = [request.param]
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def coded(*args: object, form: str = "plain") -> AttentionCase:
    return AttentionCase(*args, BF16, form=form, kv_type=KV_TYPE[0])  # type: ignore[arg-type]


def compute(case: AttentionCase, backend: object = None) -> torch.Tensor:
    out = torch.full_like(case.q, float("nan"))
    call = AttentionCall(case.q, case.layer_on(CPU), case.metadata(CPU), case.attention_spec, out)
    backend = backend or CpuAttention(KERNELS)
    if case.num_decode:
        backend.decode(call)  # type: ignore[attr-defined]
    if case.num_decode < len(case.q_lens):
        backend.prefill(call)  # type: ignore[attr-defined]
    return out


def part_of(case: AttentionCase, entry: int, first: int, last: int, decode: bool = False) -> torch.Tensor:
    """Tokens first .. last - 1 of an entry that is computed whole, alone and in slots of its own."""
    alone = AttentionCase(
        [last],
        [last - first],
        int(decode),
        "run",
        case.heads,
        case.head_dim,
        BF16,
        form=case.form,
        kv_type=case.kv_type,
    )
    assert alone.codes is not None and case.codes is not None
    for own, theirs in zip(alone.codes, case.codes):
        own[alone.tables[0]] = theirs[case.tables[entry][:last]]
    begin = sum(case.q_lens[:entry])
    alone.q = case.q[begin + first : begin + last]
    return compute(alone)


def error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return (result.double() - expected).square().mean().sqrt().item()


@pytest.mark.parametrize(
    "form", ["plain", "window", "window of one", "softcap", "alibi", "sinks", "everything"]
)
@pytest.mark.parametrize(("heads", "head_dim"), [((8, 2), 64), ((5, 1), 24), ((3, 3), 128), ((4, 1), 80)])
def test_it_is_as_near_to_the_reference_as_its_numbers_allow(
    form: str, heads: tuple[int, int], head_dim: int, kv_type: str
) -> None:
    kv_lens, q_lens = [300, 7, 150, BLOCK, 33, 1, 260], [1, 1, 150, 20, 1, 1, 130]
    case = coded(kv_lens, q_lens, 2, "shuffled", heads, head_dim, form=form)
    expected, result = case.expected(), compute(case)
    largest = error(compute(case, TorchAttention()), expected) + 1e-6
    if kv_type != "int8kv":
        # Numbers are rounded to bfloat16, and so are their weights; torch keeps those of most forms in float32.
        largest = 2**-8 * expected.square().mean().sqrt().item()
    assert error(result, expected) <= largest


@pytest.mark.parametrize("form", ["plain", "window", "everything"])
@pytest.mark.parametrize("heads", [(6, 2), (8, 1)])
def test_a_token_has_the_same_bits_in_any_chunk_decoded_and_alone(form: str, heads: tuple[int, int]) -> None:
    lengths = [2 * PIECE + BLOCK + 7, 30]
    case = coded(lengths, lengths, 0, "shuffled", heads, 32, form=form)
    whole, length = compute(case), lengths[0]
    for borders in ([0, 1, 64, length], [0, 100, 101, 290, length], [*range(0, length, 37), length]):
        parts = [part_of(case, 0, first, last) for first, last in zip(borders, borders[1:])]
        assert torch.equal(torch.cat(parts), whole[:length])
    for place in (0, BLOCK - 1, BLOCK, PIECE - 1, PIECE, length - 1):
        assert torch.equal(part_of(case, 0, place, place + 1, decode=True)[0], whole[place])
    assert torch.equal(part_of(case, 1, 0, 30), whole[length:])


def test_and_among_others_with_the_same_prefix_and_with_any_number_of_threads(threads: None) -> None:
    case = coded([PIECE + 90, PIECE + 40, 77], [1, 1, 1], 3, "shuffled", (6, 2), 64)
    case.req_to_token[case.rows[1], :PIECE] = case.req_to_token[case.rows[0], :PIECE]
    case.tables[1][:PIECE] = case.tables[0][:PIECE]
    torch.set_num_threads(1)
    together = compute(case)
    for entry, kv_len in enumerate(case.kv_lens):
        alone = coded([kv_len], [1], 1, "run", (6, 2), 64)
        assert alone.codes is not None and case.codes is not None
        for own, theirs in zip(alone.codes, case.codes):
            own[alone.tables[0]] = theirs[case.tables[entry]]
        alone.q = case.q[entry : entry + 1]
        assert torch.equal(compute(alone)[0], together[entry])
    torch.set_num_threads(3)
    for _ in range(5):
        assert torch.equal(compute(case), together)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 3], ids=["key", "value"])
def test_a_vector_that_is_not_finite_reaches_those_that_see_it_and_nobody_else(
    bad: float, place: int, kv_type: str
) -> None:
    case = coded([30, 300, 30], [30, 300, 30], 0, "shuffled", (4, 2), 32)
    good = compute(case)
    assert case.codes is not None
    case.codes[1][case.tables[1][2 * BLOCK + 9], place] = bad
    result, seen = compute(case), slice(30 + 2 * BLOCK + 9, 330)
    reached = seen
    if kv_type != "int8kv" and place == 3:  # a weight of 0 times such a value, as in bfloat16
        reached = slice(30 + 2 * BLOCK, 330)
    heads = slice(2 * (place % 2), 2 * (place % 2) + 2)
    if bad != bad or place == 3:  # a key that is infinite has all of the weight, or none
        assert result[seen, heads].isnan().all() or (
            kv_type != "int8kv" and not result[seen, heads].isfinite().any()
        )
    result[reached, heads] = good[reached, heads]
    assert torch.equal(result, good)


def test_a_query_that_is_no_number_has_no_result_and_the_others_have_theirs() -> None:
    case = coded([90], [90], 0, "shuffled", (4, 2), 32)
    good = compute(case)
    case.q[50, 1, 3] = float("nan")
    result = compute(case)
    assert result[50, 1].isnan().all()
    result[50, 1] = good[50, 1]
    assert torch.equal(result, good)


def test_large_scores_do_not_overflow_and_zeros_are_zeros() -> None:
    case = coded([90, 60], [90, 1], 0, "shuffled", (4, 2), 32)
    case.q *= 1000
    assert compute(case).isfinite().all()
    assert case.codes is not None
    for part in case.codes:
        part.zero_()
    assert (compute(case) == 0).all()

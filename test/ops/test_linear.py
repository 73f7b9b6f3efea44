"""Every form of a linear layer against float64, for any number of rows; SwiGLU, GeGLU and embedding."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from support.arithmetic import ARITHMETICS, compute_bf16_weights_in
from support.references import gated

from lightllm.ops import linear as torch_linear
from lightllm.ops.embedding import embedding
from lightllm.ops.gated_activation import gelu_and_mul, silu_and_mul
from lightllm.ops.linear import (
    Fp16PackedLinear,
    OneDnnLinear,
    PackedLinear,
    PlainLinear,
    SideBySide,
    activation_dtype,
    computed_rows,
    float32_linear,
    pack_linear,
)
from lightllm.ops.weight_rows import WeightRows

CPU = torch.device("cpu")


@pytest.fixture(params=ARITHMETICS, autouse=True)
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test with and without bf16 instructions."""
    compute_bf16_weights_in(monkeypatch, request.param)
    return request.param


@pytest.fixture
def no_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms of libraries only; that of our own is tested in test/ops/cpu/test_panel_linear.py."""
    monkeypatch.setattr(torch_linear, "panel_linear", lambda weight, bias: None)


TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}
ROWS = [1, 2, 7, 33, 130]


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    return float((result.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96, 64), (5, 17), (389, 40)])
def test_the_chosen_form_equals_the_product(dtype: torch.dtype, bias: bool, shape: tuple[int, int]) -> None:
    weight = torch.randn(shape).to(dtype)
    offset = torch.randn(shape[0]).to(dtype) if bias else None
    packed = pack_linear(weight, offset)
    for rows in ROWS:
        x = torch.randn(rows, shape[1]).to(activation_dtype(CPU, dtype))
        expected = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
        result = packed(x)
        assert result.shape == (rows, shape[0]) and result.dtype == x.dtype
        assert relative_error(result, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("form", [PlainLinear, OneDnnLinear, Fp16PackedLinear])
def test_every_form_computes_bf16_weights_in_float32_exactly_enough(form: type) -> None:
    weight = (torch.randn(64, 48) * 0.02).bfloat16()
    packed = form(weight if form is Fp16PackedLinear else weight.float(), None)
    for rows in ROWS:
        x = torch.randn(rows, 48)
        assert relative_error(packed(x), x.double() @ weight.double().T) < 1e-6


def test_onednn_meets_few_numbers_of_rows_and_never_many_more_than_there_are() -> None:
    assert [computed_rows(rows) for rows in range(1, 17)] == [*range(1, 17)]
    assert [computed_rows(rows) for rows in (17, 32, 33, 130, 512, 513, 8191)] == [
        18,
        32,
        36,
        144,
        512,
        576,
        8192,
    ]
    assert all(rows <= computed_rows(rows) <= 1.125 * rows for rows in range(1, 9000))
    assert len({computed_rows(rows) for rows in range(1, 513)}) == 56


@pytest.mark.parametrize("rows", [17, 33, 130])
def test_a_row_is_the_same_whatever_lies_behind_the_last_one(rows: int) -> None:
    packed, x = OneDnnLinear(torch.randn(64, 48), None), torch.randn(rows, 48)
    expected = packed(torch.cat((x, torch.full((computed_rows(rows) - rows, 48), float("nan")))))[:rows]
    assert torch.equal(packed(x), expected)


def test_weights_beyond_fp16_keep_their_value() -> None:
    weight = torch.full((8, 16), 1e6).bfloat16()
    x = torch.ones(2, 16, dtype=activation_dtype(CPU, torch.bfloat16))
    assert relative_error(pack_linear(weight, None)(x), x.double() @ weight.double().T) < 1e-2


@pytest.mark.usefixtures("no_panels")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(96, 64), (389, 40), (640, 40)])
def test_pieces_of_a_weight_equal_the_product(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bias: bool, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(WeightRows, "piece_bytes", 8192)
    monkeypatch.setattr(torch_linear, "_PIECE_OUTPUTS", 40)
    weight = torch.randn(shape).to(dtype)
    offset = torch.randn(shape[0]).to(dtype) if bias else None
    packed = pack_linear(weight, offset)
    assert isinstance(packed, SideBySide) and len(packed.pieces) > 1
    assert packed.nbytes == pack_linear(weight[:40], None).nbytes * shape[0] // 40
    for rows in ROWS:
        x = torch.randn(shape[1], rows).to(activation_dtype(CPU, dtype)).T  # not contiguous
        expected = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
        assert relative_error(packed(x), expected) < TOLERANCE[dtype]


@pytest.mark.usefixtures("no_panels")
def test_pieces_are_as_small_as_the_room_for_copies() -> None:
    inputs = 8192 // activation_dtype(CPU, torch.bfloat16).itemsize  # a copy takes 20 MiB
    weight, sizes = torch.randn(2560, inputs, dtype=torch.bfloat16), list[int]()

    @contextmanager
    def budget(nbytes: int) -> Iterator[None]:
        sizes.append(nbytes)
        yield

    def packed(budget_bytes: int) -> PackedLinear:
        return pack_linear(
            WeightRows([weight], weight.dtype, CPU, budget=budget, budget_bytes=budget_bytes), None
        )

    assert not isinstance(packed(1 << 30), SideBySide)
    assert isinstance(packed(20 << 20), SideBySide)
    assert sizes[1] < 0.7 * sizes[0]


def test_a_weight_that_is_on_the_device_is_not_copied() -> None:
    weight = torch.empty(8, 4, dtype=torch.bfloat16, device="meta")
    packed = pack_linear(weight, None)
    assert isinstance(packed, PlainLinear) and packed.weight is weight


def test_the_piece_that_is_beyond_fp16_keeps_its_value_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WeightRows, "piece_bytes", 4096)
    monkeypatch.setattr(torch_linear, "_PIECE_OUTPUTS", 64)
    weight = torch.randn(192, 16).bfloat16()
    weight[100] = 1e6
    x = torch.randn(3, 16).to(activation_dtype(CPU, torch.bfloat16))
    result, expected = pack_linear(weight, None)(x), x.double() @ weight.double().T
    torch.testing.assert_close(result.double(), expected, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_nearly_the_same_result_in_any_batch(dtype: torch.dtype) -> None:
    """To the last bits of float32, or to one rounding of bfloat16."""
    packed = pack_linear(torch.randn(256, 192).to(dtype), None)
    x = torch.randn(130, 192).to(activation_dtype(CPU, dtype))
    whole, ulp = packed(x), 2**-7 if x.dtype == torch.bfloat16 else 1e-5
    for rows in (1, 2, 3, 6, 7, 14, 31, 32, 33, 64, 129):
        torch.testing.assert_close(packed(x[:rows]), whole[:rows], rtol=ulp, atol=10 * ulp)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_plain_weight_may_change_after_packing(dtype: torch.dtype) -> None:
    weight = torch.randn(32, 24).to(dtype)
    packed, x = pack_linear(weight, None), torch.randn(3, 24).to(activation_dtype(CPU, dtype))
    before = packed(x)
    weight.zero_()
    assert torch.equal(packed(x), before)


@pytest.mark.parametrize("rows", [1, 33])
def test_silu_and_mul(rows: int) -> None:
    gate_up = torch.randn(rows, 2 * 24)
    expected = gated(gate_up, "silu")
    torch.testing.assert_close(silu_and_mul(gate_up).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_and_mul(approximate: str) -> None:
    gate_up = torch.randn(33, 2 * 24)
    result, expected = gelu_and_mul(gate_up, approximate), gated(gate_up, approximate)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def test_embedding_of_a_part_of_the_vocabulary_is_zero_for_the_other_tokens() -> None:
    weight = torch.randn(10, 4)
    ids = torch.tensor([19, 29, 20, 30, 0, 25])
    expected = torch.stack([weight[i - 20] if 20 <= i < 30 else torch.zeros(4) for i in ids.tolist()])
    assert torch.equal(embedding(ids, weight, first_id=20), expected)


def test_embedding_picks_rows() -> None:
    weight = torch.randn(10, 4)
    assert torch.equal(embedding(torch.tensor([9, 0, 9]), weight), weight[[9, 0, 9]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_in_float32_have_a_shape_and_a_type_on_every_device(dtype: torch.dtype) -> None:
    """On "meta" as on a GPU, where products give them: in every torch that is supported."""
    x, weight = torch.randn(3, 8).to(dtype), torch.randn(5, 8).to(dtype)
    for bias in (None, torch.randn(5).to(dtype)):
        found = float32_linear(x, PlainLinear(weight, bias))
        assert torch.equal(found, F.linear(x, weight, bias).float())
        there = PlainLinear(weight.to("meta"), None if bias is None else bias.to("meta"))
        shape = float32_linear(x.to("meta"), there)
        assert (shape.dtype, shape.shape) == (torch.float32, found.shape)

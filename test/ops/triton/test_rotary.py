"""The rotary kernel against complex multiplication: head norms, pairings, parts of heads, and the write into KV slots."""

import pytest
import torch
from support.kernels import DEVICE, DTYPES, assert_close
from support.kv import layer
from support.references import rms_norm, rotated_as_complex

from lightllm.layers.rotary import RotaryTable
from lightllm.ops.triton.rotary import rotary_and_write_kv, rotary_embedding
from lightllm.ops.triton.write_kv import write_kv

DEFAULT = {"rope_type": "default"}


def angles(
    rotary_dim: int, positions: torch.Tensor, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    table = RotaryTable(rotary_dim, 10000.0, DEFAULT, dtype, DEVICE)
    return table.lookup(positions, int(positions.max()) + 1)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (16, 4), (80, 20), (96, 96), (64, 2)])
def test_a_part_of_each_head_is_rotated_in_either_pairing(
    head_dim: int, rotary_dim: int, interleaved: bool
) -> None:
    whole = random(5, 9, head_dim)
    x, before = whole[:, 1:7], whole.clone()
    positions = torch.tensor([0, 3, 3, 100, 1000], device=DEVICE)
    result = rotary_embedding(x, *angles(rotary_dim, positions), interleaved=interleaved)
    assert_close(result, rotated_as_complex(x, positions, 10000.0, rotary_dim, interleaved), factor=10)
    assert torch.equal(whole, before)


def test_sections_of_a_head_may_turn_by_positions_of_their_own() -> None:
    """As multimodal models have it (arXiv 2409.12191): time, height and width each turn some of the frequencies."""
    half, section_of = 16, torch.tensor([0] * 4 + [1] * 6 + [2] * 6)
    x, positions = random(5, 3, 2 * half), torch.randint(0, 64, (3, 5)).to(DEVICE)
    sections = torch.cat((section_of, section_of)).to(DEVICE)

    def sectioned(of_section: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(of_section).gather(0, sections.expand(1, *of_section[0].shape))[0]

    tables = [angles(2 * half, row) for row in positions]
    cos, sin = (sectioned(list(part)) for part in zip(*tables))
    expected = sectioned([rotated_as_complex(x, row, 10000.0, 2 * half, False) for row in positions])
    assert_close(rotary_embedding(x, cos, sin), expected, factor=10)


class Case:
    """Tokens with shuffled slots and a KV memory of NaN."""

    def __init__(
        self,
        tokens: int,
        heads: int,
        kv_heads: int,
        head_dim: int = 16,
        rotary_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        norm: str = "none",
        interleaved: bool = False,
    ) -> None:
        self.heads, self.kv_heads, self.interleaved = heads, kv_heads, interleaved
        qkv = random(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
        self.qk, self.v = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        self.rotary_dim = rotary_dim or head_dim
        # The reference's angles are exact, those of the table float32: small ones differ less than is tolerated.
        self.positions = torch.randint(0, 64, (tokens,)).to(DEVICE)
        self.slots = torch.randperm(2 * tokens)[:tokens].to(DEVICE)
        self.kv = torch.full(
            (2 * tokens + 1, 2 * kv_heads, head_dim), float("nan"), dtype=dtype, device=DEVICE
        )
        shape = {"none": (0,), "shared": (head_dim,), "heads": (heads + kv_heads, head_dim)}[norm]
        self.weight = random(*shape, dtype=dtype) if norm != "none" else None

    def check(self) -> None:
        cos, sin = angles(self.rotary_dim, self.positions, self.qk.dtype)
        q = rotary_and_write_kv(
            self.qk, self.v, cos, sin, layer(self.kv), self.slots, self.interleaved, self.weight, 1e-5
        )
        x = self.qk if self.weight is None else rms_norm(self.qk, self.weight, 1e-5)
        expected = rotated_as_complex(x, self.positions, 10000.0, self.rotary_dim, self.interleaved)
        assert_close(q, expected[:, : self.heads], factor=10)
        assert_close(self.kv[self.slots, : self.kv_heads], expected[:, self.heads :], factor=10)
        assert torch.equal(self.kv[self.slots, self.kv_heads :], self.v)
        untouched = torch.ones(len(self.kv), dtype=torch.bool)
        untouched[self.slots.cpu()] = False
        assert self.kv[untouched.to(DEVICE)].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["none", "shared", "heads"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (8, 8), (71, 1), (12, 3)])
def test_keys_and_values_land_in_their_slots_and_nowhere_else(
    heads: int, kv_heads: int, norm: str, dtype: torch.dtype
) -> None:
    Case(3, heads, kv_heads, dtype=dtype, norm=norm).check()


@pytest.mark.parametrize("tokens", [1, 65])
def test_batches_of_any_size(tokens: int) -> None:
    Case(tokens, 1, 1, norm="heads").check()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(80, 20), (96, 48), (256, 256), (128, 64)])
def test_head_norm_covers_the_part_that_is_not_rotated(
    head_dim: int, rotary_dim: int, interleaved: bool
) -> None:
    Case(2, 3, 1, head_dim, rotary_dim, norm="heads", interleaved=interleaved).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "rotary_dim", "norm", "interleaved"),
    [(8, 8, 16, "none", False), (12, 3, 16, "heads", False), (71, 1, 4, "shared", False), (3, 2, 8, "heads", True)],
)  # fmt: skip
def test_rotated_keys_may_be_kept_behind_the_queries(
    heads: int, kv_heads: int, rotary_dim: int, norm: str, interleaved: bool, dtype: torch.dtype
) -> None:
    case = Case(3, heads, kv_heads, 16, rotary_dim, dtype, norm, interleaved)
    case.check()
    cos, sin = angles(case.rotary_dim, case.positions, dtype)
    written, case.kv = case.kv, torch.full_like(case.kv, float("nan"))
    arguments = (case.qk, case.v, cos, sin, layer(case.kv), case.slots, interleaved, case.weight, 1e-5)
    queries = rotary_and_write_kv(*arguments)
    kept = rotary_and_write_kv(*arguments, keep_keys=True)
    x = case.qk if case.weight is None else rms_norm(case.qk, case.weight, 1e-5)
    assert_close(kept, rotated_as_complex(x, case.positions, 10000.0, rotary_dim, interleaved), factor=10)
    assert torch.equal(kept[:, :heads], queries)
    assert torch.equal(kept[:, heads:], case.kv[case.slots, :kv_heads])
    assert torch.equal(case.kv.nan_to_num(), written.nan_to_num())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["none", "heads"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (8, 1), (71, 71), (32, 8), (28, 4)])
def test_every_shape_of_models(
    heads: int, kv_heads: int, head_dim: int, interleaved: bool, norm: str, dtype: torch.dtype
) -> None:
    Case(2, heads, kv_heads, head_dim, dtype=dtype, norm=norm, interleaved=interleaved).check()
    Case(2, heads, kv_heads, head_dim, head_dim // 4, dtype, norm, interleaved).check()


def test_padding_tokens_may_share_the_hold_slot() -> None:
    kv = torch.zeros(11, 2, 4, device=DEVICE)
    qk, v = random(4, 2, 4), random(4, 1, 4)
    slots = torch.tensor([3, 10, 10, 10], device=DEVICE)
    rotary_and_write_kv(qk, v, *angles(4, torch.zeros(4, dtype=torch.int64, device=DEVICE)), layer(kv), slots)
    assert torch.equal(kv[3, 1:], v[0]) and not kv[:3].any() and not kv[4:10].any()


def test_no_tokens_write_nothing() -> None:
    kv = torch.zeros(5, 2, 4, device=DEVICE)
    qk, v, none = random(0, 2, 4), random(0, 1, 4), torch.zeros(0, dtype=torch.int64, device=DEVICE)
    cos, sin = random(0, 1, 4), random(0, 1, 4)
    assert rotary_and_write_kv(qk, v, cos, sin, layer(kv), none).shape == (0, 1, 4)
    write_kv(v, v, layer(kv), none)
    assert not kv.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kv_heads", "head_dim"), [(1, 64), (8, 80), (71, 16)])
def test_keys_may_be_written_without_rotation(kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    kv = torch.full((9, 2 * kv_heads, head_dim), float("nan"), dtype=dtype, device=DEVICE)
    qkv, slots = random(3, 3 * kv_heads, head_dim, dtype=dtype), torch.tensor([7, 0, 3], device=DEVICE)
    write_kv(qkv[:, kv_heads : 2 * kv_heads], qkv[:, 2 * kv_heads :], layer(kv), slots)
    assert torch.equal(kv[slots], qkv[:, kv_heads:]) and kv[[1, 2, 4, 5, 6, 8]].isnan().all()


@pytest.mark.parametrize("slot_dtype", [torch.int32, torch.int64])
def test_slots_whose_offset_needs_64_bits(slot_dtype: torch.dtype) -> None:
    """300,000 slots of 32 heads of 128: only the pages that are written exist."""
    kv = torch.empty(300_001, 64, 128, dtype=torch.float16, device=DEVICE)
    qkv, slots = (
        random(2, 96, 128, dtype=torch.float16),
        torch.tensor([299_999, 300_000], dtype=slot_dtype, device=DEVICE),
    )
    qk, v = qkv[:, :64], qkv[:, 64:]
    rotary_and_write_kv(
        qk, v, *angles(128, torch.zeros(2, dtype=torch.int64, device=DEVICE)), layer(kv), slots
    )
    assert torch.equal(kv[slots], qkv[:, 32:])
    kv[slots] = 0
    write_kv(qk[:, 32:], v, layer(kv), slots)
    assert torch.equal(kv[slots], qkv[:, 32:])

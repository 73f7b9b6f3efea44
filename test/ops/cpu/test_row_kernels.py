"""What all kernels that compute rows promise: the same bits whatever is computed beside a row and by how many threads, no
larger errors than torch's, and damage that stays in its row. What they compute, the tests of the operations say.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from support.kv import layer
from support.references import gated, rms_norm

from lightllm.layers.rotary import RotaryTable
from lightllm.ops.cpu import gated_activation as gates
from lightllm.ops.cpu import greedy_tokens as greedy
from lightllm.ops.cpu import rms_norm as norms
from lightllm.ops.cpu import rotary as rotations
from lightllm.ops.cpu.calls.gated_activation import SILU
from lightllm.ops.cpu.rows import DTYPES, RowKernels
from lightllm.ops.gated_activation import gelu_and_mul, silu_and_mul
from lightllm.ops.rms_norm import fused_add_rms_norm
from lightllm.ops.rms_norm import rms_norm as public_rms_norm
from lightllm.ops.rotary import rotary_and_write_kv
from lightllm.ops.sample import greedy_tokens

HEADS, KV_HEADS, HEAD_DIM, SLOTS = 5, 2, 48, 99
ROWS = 21


@pytest.fixture(params=["one thread", "three threads"], autouse=True)
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So many, however small the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    most = {"one thread": 1 << 60, "three threads": 0}[request.param]
    for module in (gates, greedy, norms, rotations):
        monkeypatch.setattr(module._kernels, "at_once", most)
    yield
    torch.set_num_threads(before)


def norm(x: torch.Tensor) -> torch.Tensor:
    return public_rms_norm(x, weight(x.shape[1], x.dtype), 1e-6)


def sum_and_norm(x: torch.Tensor) -> torch.Tensor:
    residual = (x * 3 - x.flip(1)).contiguous()
    result = fused_add_rms_norm(x, residual, weight(x.shape[1], torch.float32), 1e-6)
    return torch.cat((result, residual), 1)


def head_norm_and_rotation(x: torch.Tensor) -> torch.Tensor:
    return turn(x, weight(HEAD_DIM, x.dtype))


def rotation(x: torch.Tensor) -> torch.Tensor:
    return turn(x, None)


def turn(x: torch.Tensor, norm_weight: torch.Tensor | None) -> torch.Tensor:
    """Queries, and what is in the slots; a row's position and slot are written in its first element."""
    place = (x[:, 0].float().abs() * 1000).long() % SLOTS
    x = x[:, : (HEADS + 2 * KV_HEADS) * HEAD_DIM].view(len(x), -1, HEAD_DIM)
    qk, v = x[:, : HEADS + KV_HEADS], x[:, HEADS + KV_HEADS :]
    kv = torch.zeros(SLOTS + 1, 2 * KV_HEADS, HEAD_DIM, dtype=x.dtype)
    table = RotaryTable(32, 10000.0, {"rope_type": "default"}, x.dtype, torch.device("cpu"))
    slots = torch.arange(len(x)) * 7 % SLOTS
    q = rotary_and_write_kv(
        qk, v, *table.lookup(place, SLOTS), layer(kv), slots, norm_weight=norm_weight, eps=1e-6
    )
    return torch.cat((q, kv[slots]), 1).flatten(1)


def token(x: torch.Tensor) -> torch.Tensor:
    ids, logprobs = greedy_tokens(x)
    return torch.stack((ids.float(), logprobs), 1)


def weight(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(0.5, 2, size).to(dtype)


KERNELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "norm": norm,
    "sum and norm": sum_and_norm,
    "silu": silu_and_mul,
    "gelu": gelu_and_mul,
    "head norm and rotation": head_norm_and_rotation,
    "rotation": rotation,
    "greedy": token,
}


def numbers(dtype: torch.dtype) -> torch.Tensor:
    """Rows that lie apart, of an odd number of vectors' lengths."""
    return (torch.randn(ROWS, 1300) * 2).to(dtype)[:, 7 : 7 + 1214]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_row_has_the_same_result_alone_and_among_others(name: str, dtype: torch.dtype) -> None:
    x, compute = numbers(dtype), KERNELS[name]
    together = compute(x)
    assert together.isfinite().all()
    for row in range(ROWS):
        assert torch.equal(compute(x[row : row + 1].clone())[0], together[row])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_a_number_that_is_none_reaches_its_own_row_and_no_other(
    name: str, dtype: torch.dtype, bad: float
) -> None:
    x, compute = numbers(dtype), KERNELS[name]
    good = compute(x)
    x[4, 300], others = bad, torch.arange(ROWS) != 4
    result = compute(x)
    assert torch.equal(result[others], good[others])
    assert not result[4].isfinite().all() or (name == "greedy" and bad < 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_no_larger_than_those_of_torch(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the formulas in float64, over all numbers; where torch rounds as often, a hundredth more is chance."""
    x = (torch.randn(64, 2 * 1024) * 2).to(dtype)
    positions, slots = torch.randint(0, 2000, (64,)), torch.randperm(SLOTS)[:64]
    table = RotaryTable(128, 10000.0, {"rope_type": "default"}, dtype, torch.device("cpu"))
    angles = table.lookup(positions, 2000)
    kv = layer(torch.zeros(SLOTS + 1, 4, 128, dtype=dtype))
    heads = x.view(64, 16, 128)

    def rotated() -> torch.Tensor:
        return rotary_and_write_kv(heads[:, :14], heads[:, 14:], *angles, kv, slots)

    def exactly_rotated() -> torch.Tensor:
        half = (part[..., :64].double() for part in angles)
        cos, sin = half
        a, b = heads[:, :12].double().chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    cases = {
        "norm": (lambda: norm(x), lambda: rms_norm(x, weight(2048, dtype), 1e-6)),
        "silu": (lambda: silu_and_mul(x), lambda: gated(x, "silu")),
        "gelu": (lambda: gelu_and_mul(x), lambda: gated(x, "tanh")),
        "rotation": (rotated, exactly_rotated),
    }
    ours = {name: float((run() - exact()).norm()) for name, (run, exact) in cases.items()}
    monkeypatch.setattr(RowKernels, "find", lambda self, dtype: None)
    for name, (run, exact) in cases.items():
        allowed = 1.01 if dtype != torch.float32 else 1.5
        assert ours[name] <= allowed * float((run() - exact()).norm()), name


def test_what_there_is_no_kernel_for_is_left_to_torch() -> None:
    doubles, columns, w = torch.randn(4, 6).double(), torch.randn(6, 4).t(), torch.randn(6)
    for x in doubles, columns:
        assert norms.rms_norm(x, w, 1e-6) is None
        assert gates.gated_activation(x, SILU) is None
        assert greedy.greedy_tokens(x) is None
        assert greedy_tokens(x)[0].tolist() == x.argmax(1).tolist()
        torch.testing.assert_close(silu_and_mul(x).double(), gated(x, "silu"))
    torch.testing.assert_close(public_rms_norm(columns, w, 1e-6).double(), rms_norm(columns, w, 1e-6))

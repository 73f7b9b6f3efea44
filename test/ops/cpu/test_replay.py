"""Passes over layers that are noted once and replayed: the same bits, and nothing is replayed that cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.cpu import recording
from lightllm.ops.cpu.library import load_kernels
from lightllm.ops.cpu.replay import Replays
from lightllm.ops.gated_activation import silu_and_mul
from lightllm.ops.rms_norm import fused_add_rms_norm, rms_norm

KERNELS = load_kernels()
pytestmark = pytest.mark.skipif("replay" not in KERNELS, reason="no kernels of our own")
SIZE, LAYERS = 1000, 5
WEIGHTS = [torch.randn(SIZE, generator=torch.Generator().manual_seed(layer)) for layer in range(LAYERS)]
METADATA = AttentionMetadata(
    torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32),
    torch.zeros(1, 1, dtype=torch.int32), 0, 0, 0, 0,
)  # fmt: skip


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def layers(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The first is added to; some calls are large enough for several threads."""
    residual, x = inputs
    for weight in WEIGHTS:
        x = fused_add_rms_norm(x, residual, weight, 1e-5)
        gated = silu_and_mul(x).view(len(x), 2, SIZE // 4)
        residual.view(2 * len(x), -1)  # a view of it dies at once
        heads = rms_norm(gated, weight[: SIZE // 4], 1e-5)
        x = rms_norm(heads.view(len(x) // 2, SIZE) if len(x) % 2 == 0 else x, weight, 1e-5)
        x = rms_norm(residual, weight, 1e-5)
    return [x, residual]


def given(rows: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, SIZE, generator=generator) for _ in range(2)]


def expected(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return layers([tensor.clone() for tensor in inputs])


def run(replays: Replays, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [tensor.clone() for tensor in replays.run(layers, [one.clone() for one in inputs], METADATA)]


def test_replays_have_the_bits_of_calls_for_any_order_of_sizes(threads: int) -> None:
    replays = Replays(KERNELS["replay"])
    for seed, rows in enumerate([3, 200, 3, 1, 200, 64, 1, 3, 200, 64]):
        inputs = given(rows, seed)
        for result, wanted in zip(run(replays, inputs), expected(inputs), strict=True):
            assert torch.equal(result, wanted)
    assert not replays.refusal
    assert len(replays._passes) == 4


def test_python_is_not_asked_again() -> None:
    replays, calls = Replays(KERNELS["replay"]), []

    def counted(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(len(inputs[0]))
        return layers(inputs)

    with torch.inference_mode():
        for seed in range(4):
            inputs = given(7, seed)
            results = replays.run(counted, [one.clone() for one in inputs], METADATA)
            assert torch.equal(results[0], expected(inputs)[0])
    assert calls == [7]


def test_passes_share_their_memory() -> None:
    replays = Replays(KERNELS["replay"])
    for rows in (40, *range(33, 48)):
        run(replays, given(rows, rows))
    sizes = [len(block) for block in replays._arena._blocks]
    assert len(sizes) <= 8, sizes  # two inputs, what two calls after each other read and write
    assert sum(sizes) <= 8 * 2 * 48 * SIZE * 4


def test_nothing_is_replayed_that_torch_computes() -> None:
    replays = Replays(KERNELS["replay"])

    def work(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [rms_norm(inputs[0], WEIGHTS[0], 1e-5).mul_(2)]

    with torch.inference_mode():
        for seed in range(3):
            x = given(5, seed)[0]
            (result,) = replays.run(work, [x], METADATA)
            assert torch.equal(result, rms_norm(x, WEIGHTS[0], 1e-5) * 2)
    assert "mul_" in replays.refusal


def test_a_kernel_that_is_told_something_of_one_round_alone_is_not_replayed() -> None:
    note = recording.Recording(recording.Arena())
    note.note(1, 12345, alone=False)
    assert "one round" in note.refusal


def test_a_pass_that_depends_on_something_else_is_found_out() -> None:
    replays, turn = Replays(KERNELS["replay"]), iter([WEIGHTS[0], WEIGHTS[1], WEIGHTS[2]])
    hidden = torch.zeros(SIZE)

    def work(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        hidden.numpy()[:] = next(turn).numpy()  # torch does not see it
        result = [rms_norm(inputs[0], hidden, 1e-5)]
        hidden.numpy()[:] = 0
        return result

    with torch.inference_mode():
        x = given(5, 0)[0]
        for weight in WEIGHTS[:2]:
            (result,) = replays.run(work, [x], METADATA)
            assert torch.equal(result, rms_norm(x, weight, 1e-5))
    assert replays.refusal


def test_an_error_ends_the_recording() -> None:
    replays = Replays(KERNELS["replay"])

    def fails(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        replays.run(fails, given(3, 0), METADATA)
    assert recording.current() is None
    inputs = given(3, 1)
    assert torch.equal(run(replays, inputs)[0], expected(inputs)[0])


@torch.inference_mode()
def test_memory_of_an_arena_is_taken_as_long_as_a_view_of_it_lives() -> None:
    arena = recording.Arena()
    whole = arena.empty((10, 300), torch.float32)
    row = whole[3]
    address = whole.data_ptr()
    del whole
    assert arena.empty((10, 300), torch.float32).data_ptr() != address
    del row
    assert arena.empty((10, 300), torch.float32).data_ptr() == address
    kept = arena.empty((10, 300), torch.float32)
    arena.keep(kept)
    assert arena.empty((10, 300), torch.float32).data_ptr() == kept.data_ptr()
    arena.keep(kept, -1)
    assert arena.empty((10, 300), torch.float32).data_ptr() != kept.data_ptr()

"""Sizes of the KV memory, and that reserving it costs nothing."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from lightllm.backend import kv_memory
from lightllm.backend.kv_memory import (
    CPU_CEILING,
    CPU_RESERVE,
    GpuMemory,
    KvMemory,
    KvShape,
    Rows,
    choose_slots,
    measured_slots_cpu,
    measured_slots_gpu,
)
from lightllm.config import ServerConfig
from lightllm.errors import DeviceError, InvalidOption
from lightllm.ops.kv_codes import FORMATS
from lightllm.quantization.kv_types import check_kv_type

GIB = 1 << 30
SHAPE = KvShape(num_layers=4, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16)


def test_bytes_of_a_token():
    assert SHAPE.bytes_per_token == 4 * 2 * 2 * 64 * 2


def test_cpu_takes_two_fifths_of_what_is_available_up_to_a_ceiling():
    assert measured_slots_cpu(5 * GIB, None, SHAPE, 0) == 2 * GIB // SHAPE.bytes_per_token - 1
    assert measured_slots_cpu(100 * GIB, None, SHAPE, 0) == CPU_CEILING // SHAPE.bytes_per_token - 1


def test_cpu_with_mem_fraction_passes_the_ceiling_but_leaves_room_for_activations():
    assert measured_slots_cpu(20 * GIB, 0.5, SHAPE, 0) == 10 * GIB // SHAPE.bytes_per_token - 1
    assert measured_slots_cpu(20 * GIB, 0.9, SHAPE, 5 * GIB) == 15 * GIB // SHAPE.bytes_per_token - 1


def test_gpu_fills_its_fraction_beside_weights_and_activations():
    memory = GpuMemory(total=80 * GIB, free=60 * GIB, activation_peak=2 * GIB)
    assert measured_slots_gpu(memory, 0.9, SHAPE) == 50 * GIB // SHAPE.bytes_per_token - 1


def test_too_little_memory_names_the_numbers_and_the_options():
    with pytest.raises(DeviceError, match=r"0\.00 GiB of memory are available.*--mem_fraction"):
        measured_slots_cpu(100 << 10, None, SHAPE, 0)
    with pytest.raises(DeviceError, match=r"20\.00 GiB are in use"):
        measured_slots_gpu(GpuMemory(total=24 * GIB, free=4 * GIB, activation_peak=GIB), 0.8, SHAPE)


def test_given_size_is_taken_if_it_fits(monkeypatch):
    monkeypatch.setattr(kv_memory, "available_memory", lambda: GIB)
    assert choose_slots(ServerConfig(max_total_token_num=1000), SHAPE, 0) == 1000
    with pytest.raises(
        DeviceError, match=r"--max_total_token_num 1000000 needs 1\.91 GiB.*0\.09 GiB.*at most 475135"
    ):
        choose_slots(ServerConfig(max_total_token_num=1_000_000), SHAPE, 0)


def test_given_size_must_leave_free_what_rounds_need_beside_it(monkeypatch):
    monkeypatch.setattr(kv_memory, "available_memory", lambda: GIB)
    slots = (GIB - CPU_RESERVE) // SHAPE.bytes_per_token - 1
    assert choose_slots(ServerConfig(max_total_token_num=slots), SHAPE, 0) == slots
    with pytest.raises(DeviceError, match="rounds need 0.59 GiB beside it"):
        choose_slots(ServerConfig(max_total_token_num=slots), SHAPE, GIB // 2)


def test_vision_encoders_on_the_same_device_have_room_for_their_activations(monkeypatch):
    memory = GpuMemory(total=80 * GIB, free=60 * GIB, activation_peak=2 * GIB)
    slots = choose_slots(ServerConfig(), SHAPE, 0, lambda: memory, memory.free, encoding=4 * GIB)
    assert slots == 46 * GIB // SHAPE.bytes_per_token - 1
    with pytest.raises(DeviceError, match="encoding images 70.00 GiB.*--max_image_pixels"):
        choose_slots(ServerConfig(), SHAPE, 0, lambda: memory, memory.free, encoding=70 * GIB)
    most = ServerConfig(max_total_token_num=56 * GIB // SHAPE.bytes_per_token - 1)
    assert choose_slots(most, SHAPE, 0, lambda: memory, memory.free, encoding=4 * GIB)
    with pytest.raises(DeviceError, match="max_total_token_num"):
        choose_slots(most, SHAPE, 0, lambda: memory, memory.free, encoding=5 * GIB)


def test_vision_encoders_on_a_cpu_get_half_of_what_is_available_at_most(monkeypatch):
    monkeypatch.setattr(kv_memory, "available_memory", lambda: GIB)

    def slots(encoding):
        return choose_slots(ServerConfig(mem_fraction=1.0), SHAPE, 0, encoding=encoding)

    assert slots(GIB // 4) == (GIB * 3 // 4 - CPU_RESERVE) // SHAPE.bytes_per_token - 1
    assert slots(9 * GIB) == (GIB // 2 - CPU_RESERVE) // SHAPE.bytes_per_token - 1


def test_a_measured_size_leaves_a_reserve_however_large_the_fraction(monkeypatch):
    monkeypatch.setattr(kv_memory, "available_memory", lambda: GIB)
    slots = choose_slots(ServerConfig(mem_fraction=1.0), SHAPE, GIB // 4)
    assert (slots + 1) * SHAPE.bytes_per_token <= GIB - GIB // 4 - CPU_RESERVE


def test_rows_are_counted_with_their_slots_and_token_counts():
    assert Rows(9, 1000, 50_000).bytes_beside(10**6) == 10 * (1000 * 4 + 1000 * 12)
    assert Rows(9, 1000, 500).bytes_beside(10**6) == 10 * (1000 * 4 + 500 * 12)
    memory = GpuMemory(total=80 * GIB, free=60 * GIB, activation_peak=GIB)
    rows = Rows(1023, 1 << 16, 1 << 18)
    assert rows.bytes_beside(10**6) == GIB
    assert measured_slots_gpu(memory, 0.9, SHAPE, rows) == 50 * GIB // SHAPE.bytes_per_token - 1


def test_no_row_is_counted_for_more_tokens_than_there_are_slots(monkeypatch):
    """1000 rows of a model with a context of 131,072 tokens would be 2 GiB; where a few thousand slots fit, they are not."""
    shape = KvShape(num_layers=16, num_kv_heads=8, head_dim=64, dtype=torch.bfloat16)
    rows = Rows(1000, 131_072, 128_256)
    for slots in (
        measured_slots_cpu(GIB, 1.0, shape, 0, rows=rows),
        measured_slots_gpu(GpuMemory(total=2 * GIB, free=GIB, activation_peak=0), 1.0, shape, rows),
    ):
        assert slots > 20_000
        sizes = [(n + 1) * shape.bytes_per_token + rows.bytes_beside(n) for n in (slots, slots + 1)]
        assert sizes[0] <= GIB < sizes[1]
    monkeypatch.setattr(kv_memory, "available_memory", lambda: GIB)
    given = ServerConfig(max_total_token_num=15_000)
    assert choose_slots(given, shape, 0, rows=rows) == 15_000
    with pytest.raises(DeviceError, match=r"at most 1\d{4},"):
        choose_slots(ServerConfig(max_total_token_num=30_000), shape, 0, rows=rows)


def test_layout_and_hold_places():
    memory = KvMemory(SHAPE, slots=100, max_rows=3, max_len=20, device=torch.device("cpu"))
    assert [tuple(layer.data.shape) for layer in memory.kv] == [(101, 4, 64)] * 4
    assert memory.kv[0].data.dtype == torch.bfloat16
    assert memory.req_to_token.shape == (4, 20) and memory.req_to_token.dtype == torch.int32
    assert (memory.req_to_token[3] == 100).all() and (memory.kv[0].data[100] == 0).all()


@pytest.mark.parametrize(
    ("heads", "head_dim", "kv_type", "gap"),
    [(8, 128, None, 64), (4, 64, None, 64), (2, 64, None, 0), (3, 96, None, 0), (8, 128, "int8kv", 64)],
)
def test_slots_on_a_cpu_do_not_lie_in_the_same_places_of_a_cache(
    heads: int, head_dim: int, kv_type: str | None, gap: int
) -> None:
    plain = KvShape(2, heads, head_dim, torch.bfloat16, format=FORMATS[kv_type] if kv_type else None)
    shape = dataclasses.replace(plain, apart=True)
    assert shape.bytes_per_token == plain.bytes_per_token + 2 * gap
    memory, close = (KvMemory(one, 100, 3, 20, torch.device("cpu")) for one in (shape, plain))
    data = memory.kv[1].data
    assert (data.stride(0) - data[0].numel()) * data.itemsize == gap
    assert data.shape == close.kv[1].data.shape and close.kv[1].data.is_contiguous()


def test_reserving_gigabytes_does_not_touch_them():
    program = """
import resource, torch
from lightllm.backend.kv_memory import KvMemory, KvShape
shape = KvShape(num_layers=8, num_kv_heads=4, head_dim=64, dtype=torch.bfloat16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
memory = KvMemory(shape, slots=(2 << 30) // shape.bytes_per_token, max_rows=1000, max_len=16384, device=torch.device("cpu"))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 64  # MiB, of 2 GiB


@pytest.mark.parametrize(("kv_type", "gain"), [("int8kv", 1.93), ("fp8kv", 1.93), ("int4kv", 3.5)])
def test_few_bits_give_that_many_more_slots_measured_and_given(monkeypatch, kv_type, gain):
    plain = KvShape(16, 8, 64, torch.bfloat16)
    coded = dataclasses.replace(plain, format=FORMATS[kv_type])
    slots = [measured_slots_cpu(GIB, 0.5, shape, 0) for shape in (plain, coded)]
    assert slots[1] / slots[0] > gain
    memory = KvMemory(coded, 100, 3, 20, torch.device("cpu"))
    assert memory.kv[0].bytes_per_slot * 16 == coded.bytes_per_token and memory.kv[0].head_dim == 64
    assert (memory.kv[0].read(torch.tensor([100]), torch.float32) == 0).all()
    monkeypatch.setattr(kv_memory, "available_memory", lambda: GIB)
    given = ServerConfig(max_total_token_num=int(GIB / plain.bytes_per_token))
    assert choose_slots(given, coded, 0) == given.max_total_token_num
    with pytest.raises(DeviceError, match="KV memory"):
        choose_slots(given, plain, 0)


def test_latent_vectors_stay_as_they_are_and_what_no_kernel_reads_on_a_gpu_is_refused():
    check_kv_type("None", latent=True, gpu=True)
    check_kv_type("int8kv", latent=False, gpu=True)
    check_kv_type("int4kv", latent=False)
    with pytest.raises(InvalidOption, match="--llm_kv_type int8kv.* latent"):
        check_kv_type("int8kv", latent=True)
    with pytest.raises(InvalidOption, match="--llm_kv_type fp8kv is not built for GPUs"):
        check_kv_type("fp8kv", latent=False, gpu=True)

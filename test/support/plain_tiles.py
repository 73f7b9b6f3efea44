"""A plugin (`-p support.plain_tiles`): the attention kernel as a processor with a matrix unit (AMX) has it, its products in plain
loops. So how pieces are laid out for the unit is tested where there is none."""

from __future__ import annotations

import importlib

import llvmlite.binding as llvm
import numpy as np

from lightllm.ops import cpu_kind
from lightllm.ops.cpu.kernels import tiles
from lightllm.ops.cpu.kernels.lowlevel import float_of, floats, kernel, uint16s
from lightllm.ops.cpu.library import Kernel, load_kernels

PIECE = 32


@kernel
def number(numbers, i):
    return float_of(np.int32(np.uint32(numbers[i]) << np.uint32(16)))


@kernel
def add_product(left, left_stride, right, right_stride, out, out_stride, count):
    for row in range(PIECE):
        a, sums = uint16s(left + row * left_stride), floats(out + row * out_stride)
        for column in range(PIECE):
            for i in range(PIECE * count):
                b = uint16s(right + i // 2 * right_stride)
                sums[column] += number(a, i) * number(b, 2 * column + i % 2)


@kernel
def product(left, left_stride, right, right_stride, out, out_stride, count):
    for row in range(PIECE):
        sums = floats(out + row * out_stride)
        for column in range(PIECE):
            sums[column] = np.float32(0)
    add_product(left, left_stride, right, right_stride, out, out_stride, count)


@kernel
def ignore(address):
    return


@kernel
def do_nothing():
    return


def install() -> None:
    kernels = load_kernels()
    llvm.initialize_native_target()
    llvm.initialize_native_asmparser()
    chosen = cpu_kind.chosen
    cpu_kind.chosen = lambda *_: cpu_kind.CpuKind.AMX
    importlib.import_module("lightllm.ops.cpu.block_attention")
    tiles.product, tiles.add_product = product, add_product
    tiles.read_configuration = tiles.configure = ignore
    tiles.release = do_nothing
    block_attention = importlib.import_module("lightllm.ops.cpu.kernels.block_attention")
    cpu_kind.chosen = chosen
    kept = block_attention.make()
    KEPT.append(kept)
    kernels["block_attention_bfloat16"] = Kernel(kept.address)


KEPT: list[object] = []
"""They own the code's memory."""
install()

"""What a gate is told."""

from lightllm.ops.cpu.calls.rows import BLOCK, NEXT, ROWS

__all__ = ["BLOCK", "NEXT", "ROWS"]
(
    GATE_UP,  # [rows, 2 * size], of any stride of rows
    STRIDE,
    UP,  # from the gate to what is multiplied with it
    SIZE,
    OUT,  # [rows, size], contiguous
    OUT_STRIDE,
    ACTIVATION,
) = range(3, 10)
LENGTH = 10
SILU, GELU_TANH = range(2)

"""What an RMSNorm is told."""

from lightllm.ops.cpu.calls.rows import BLOCK, NEXT, ROWS

__all__ = ["BLOCK", "NEXT", "ROWS"]
(
    X,  # [tokens, heads, size], of any strides but the last
    X_STRIDE,
    X_HEAD_STRIDE,
    HEADS,
    SIZE,
    RESIDUAL,  # [tokens, size], of any stride of rows, or 0
    RESIDUAL_STRIDE,
    WEIGHT,  # [heads, size]
    WEIGHT_STRIDE,  # 0: one for all heads
    WEIGHT_IS_FLOAT32,  # 0: it is of x's dtype
    OUT,  # [tokens, heads, size], contiguous
    OUT_STRIDE,
    EPS,  # bits of a float32
) = range(3, 16)
LENGTH = 16

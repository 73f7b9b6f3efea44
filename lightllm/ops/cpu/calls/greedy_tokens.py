"""What the kernel for greedy tokens is told."""

from lightllm.ops.cpu.calls.rows import BLOCK, NEXT, ROWS

__all__ = ["BLOCK", "NEXT", "ROWS"]
(
    LOGITS,  # [rows, size], of any stride of rows
    STRIDE,
    SIZE,
    TOKEN_IDS,  # int64 [rows]
    LOGPROBS,  # float32 [rows]: 0, or NaN where the largest logit is not finite
) = range(3, 8)
LENGTH = 8

"""What the kernel for head norm, rotation and KV write is told."""

from lightllm.ops.cpu.calls.rows import BLOCK, NEXT, ROWS

__all__ = ["BLOCK", "NEXT", "ROWS"]
(
    QK,  # [tokens, heads + kv_heads, head_dim], of any strides but the last
    QK_STRIDE,
    QK_HEAD_STRIDE,
    V,  # [tokens, kv_heads, head_dim], likewise
    V_STRIDE,
    V_HEAD_STRIDE,
    HEADS,  # of queries
    KV_HEADS,
    HEAD_DIM,
    ROTARY_DIM,
    INTERLEAVED,
    COS,  # [tokens, rotary_dim]: the first half is read
    SIN,
    ANGLE_STRIDE,
    WEIGHT,  # [heads + kv_heads, head_dim], or 0: no norm
    WEIGHT_STRIDE,  # 0: one for all heads
    WEIGHT_IS_FLOAT32,  # 0: it is of qk's dtype
    EPS,  # bits of a float32
    KV,  # [slots, 2 * kv_heads, head_dim]
    KV_STRIDE,
    SLOTS,  # int64 [tokens]
    OUT,  # [tokens, KEPT, head_dim], contiguous
    OUT_STRIDE,
    KEPT,  # heads that are returned
    HEAD_BYTES,  # from head to head of a slot, and of what is returned
) = range(3, 28)
LENGTH = 28
LARGEST_HEAD = 1024

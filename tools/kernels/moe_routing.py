"""What of `ops/triton/moe_routing.py` is compiled ahead of time."""

from __future__ import annotations

from kernels.compile_case import CompileCase
from lightllm.ops.moe_routing_spec import MoeRoutingSpec
from lightllm.ops.triton.moe_routing import choose_experts_kernel, constants

COMPILE_CASES = [
    CompileCase(
        kernel=choose_experts_kernel,
        label=label,
        arguments={
            "logits_ptr": "*fp32:16", "bias_ptr": "*fp32:16" if bias else None, "weights_ptr": "*fp32:16",
            "experts_ptr": "*i32:16", "stride": "i32:16", "scale": "fp32", **constants(spec, bias),
        },
        launch={"num_warps": 1},
    )
    for label, spec, bias in (
        ("Qwen3: 8 of 128", MoeRoutingSpec(128, 8, normalise=True), False),
        ("DeepSeek-V2: 6 of 160 in 8 groups", MoeRoutingSpec(160, 6, groups=8, top_groups=3, scale=16.0), False),
        ("DeepSeek-V3: 8 of 256 in 8 groups, biased", MoeRoutingSpec(
            256, 8, scoring="sigmoid", normalise=True, groups=8, top_groups=4, scale=2.5), True),
        ("gpt-oss: 4 of 128", MoeRoutingSpec(128, 4, scoring="top_k_softmax"), False),
    )
]  # fmt: skip

"""Weights in few bits of random codes, for tests of linear layers."""

from __future__ import annotations

import torch

from lightllm.ops.quantized_weight import QuantizedWeight


def random_weight(element: str, outputs: int, inputs: int, group: int, zeros: bool) -> QuantizedWeight:
    """group: inputs that share a scale. Codes are all that there are, but those of E4M3 that stand for no number."""
    generator, groups = torch.Generator().manual_seed(0), -(-inputs // group)
    own = None
    if element == "int8":
        codes = torch.randint(-128, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
        own = torch.randint(-128, 128, (outputs, groups), generator=generator, dtype=torch.int8)
    elif element == "e4m3":
        every = torch.randint(256, (outputs, inputs), generator=generator, dtype=torch.uint8)
        codes = torch.where(every & 127 == 127, every - 1, every).view(torch.float8_e4m3fn)
    else:
        codes = torch.randint(256, (outputs, inputs // 2), generator=generator, dtype=torch.uint8)
        own = torch.randint(16, (outputs, groups), generator=generator, dtype=torch.uint8)
    scales = torch.rand(outputs, groups, generator=generator) * 0.02
    return QuantizedWeight(element, codes, scales, own if zeros else None, group)

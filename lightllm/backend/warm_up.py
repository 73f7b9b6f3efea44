"""First runs at start: lazy libraries, packed weights and thread pools are paid for before the first request.

They use the hold row and the hold slot only, so no request's memory is touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightllm.backend.device import Device
from lightllm.backend.kv_memory import KvMemory
from lightllm.backend.sizing import decode_hold_rows, run_hold_rows, run_largest_round

if TYPE_CHECKING:
    from lightllm.models.registry import TpPartBaseModel

_TOKENS = 16


def warm_up(model: "TpPartBaseModel", memory: KvMemory, device: Device, largest_round: int) -> None:
    """One prefill and one decode round; before them the largest round, where memory can run out."""
    length = min(_TOKENS, memory.max_len)
    if device.measures:
        run_largest_round(model, memory, largest_round)
    run_hold_rows(model, memory, length)
    decode_hold_rows(model, memory, 1, length)

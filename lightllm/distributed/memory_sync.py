"""The ranks agree on the size of the KV memory: the smallest of what each has measured."""

from __future__ import annotations

from lightllm.distributed.rendezvous import name_ranks
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import DeviceError

IMBALANCE = 2 << 30
"""Bytes of free memory by which ranks may differ: beyond it something else runs on one of the devices."""


def agree_on_slots(group: TpGroup, slots: int, free: int | None) -> int:
    """The smallest number of KV slots of any rank, on every rank.

    free: bytes of this rank's device that were free before its KV memory; None on a CPU, whose ranks share a memory.
    Raises `DeviceError`, on every rank, if the ranks' free memory differs by more than `IMBALANCE`.
    """
    if group.world_size == 1:
        return slots
    answers = group.gather_numbers(slots, free or 0)
    frees = [free for _, free in answers]
    if max(frees) - min(frees) > IMBALANCE:
        least = [rank for rank, free in enumerate(frees) if max(frees) - free > IMBALANCE]
        table = ", ".join(f"rank {rank} {free / 2**30:.1f} GiB" for rank, free in enumerate(frees))
        raise DeviceError(
            f"The devices of {name_ranks(least)} have far less free memory than the others: {table}.",
            "See what else runs there.",
        )
    return min(slots for slots, _ in answers)

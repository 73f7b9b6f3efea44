"""The tensor parallel group of one rank: its number, and what the ranks do together.

A group of CPU ranks can fall apart (a rank failed, died or hangs): a rank that notices drops its links, which the others notice
at once. `reconnect` joins all ranks anew, as the next generation of the group. GPU ranks end instead and are started anew
(`heals`). With one rank every operation returns its input.
"""

from __future__ import annotations

import torch

from lightllm.distributed.collectives import Collectives, PeerLost
from lightllm.distributed.gloo import GlooCollectives
from lightllm.distributed.rendezvous import RankStore, Rendezvous, name_ranks
from lightllm.errors import DeviceError

_FAILURE_SECONDS = 1.0
"""How long a rank whose operation failed waits to hear why another one left."""
IMBALANCE = 2 << 30
"""Bytes of free memory by which ranks may differ: beyond it something else runs on one of the devices."""


class TpGroup:
    """`world_size` ranks that each hold a part of every large weight. Layers keep a reference to it."""

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        store: RankStore | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Without a `store` a group of several ranks can load its part of a model, not run it."""
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._device = device or torch.device("cpu")
        self._links: Collectives | None = None
        self.generation = -1
        """Number of the present one. Who sets it does so on all ranks alike."""

    @classmethod
    def join(cls, rendezvous: Rendezvous, device: torch.device) -> TpGroup:
        """Meets the other ranks; on a GPU, `device` is the current one. Raises `PeerLost` that names the missing ones."""
        group = cls(rendezvous.rank, rendezvous.world_size, RankStore(rendezvous), device)
        group.reconnect()
        return group

    # -- falling apart and coming together

    @property
    def joined(self) -> bool:
        return self._links is not None

    @property
    def heals(self) -> bool:
        """Whether the ranks can join anew after a failure. On GPUs they cannot: graphs hold operations of the links they
        were captured with, and ending these while graphs live may hang (pytorch issue 115388)."""
        return self._device.type == "cpu"

    def go_on(self, generation: int, done: int) -> None:
        """The links stay, and the generation gets another number, if every rank comes with the same `done`: then all have
        enqueued the same operations. Raises `PeerLost` that says how they differ, or names the missing; and `Superseded`."""
        assert self._store is not None
        self._store.arrive(generation)
        counts = self._store.gather(f"done-{generation}", str(done))
        if len(set(counts)) > 1:
            raise PeerLost(f"the ranks have computed {', '.join(counts)} rounds")
        self.generation = generation

    def reconnect(self, generation: int | None = None) -> None:
        """Joins the generation with this number, or the next one, as all ranks must. Raises `PeerLost` that names the missing
        ones, and `Superseded`."""
        self.drop()
        if self._store is None:
            return
        self.generation = self.generation + 1 if generation is None else generation
        rendezvous = self._store.rendezvous
        store = self._store.arrive(self.generation)
        joining = (store, self.rank, self.world_size, rendezvous.address, rendezvous.operation_timeout)
        if self._device.type == "cpu":
            self._links = GlooCollectives(*joining)
        else:
            from lightllm.distributed.nccl import NcclCollectives

            self._links = NcclCollectives(*joining, not rendezvous.host)

    def drop(self, reason: str = "") -> None:
        """Leaves the group; operations of the others fail instead of waiting for this rank. `reason`: what they are told."""
        if reason and self._store is not None:
            self._store.post_failure(self.generation, reason)
        links, self._links = self._links, None
        if links is not None:
            links.close()

    def read_failure(self) -> str | None:
        """The reason that the first rank to leave has given, if there is one."""
        return None if self._store is None else self._store.read_failure(self.generation, _FAILURE_SECONDS)

    def wait_for_all(self, what: str, timeout: float) -> None:
        """Waits until every rank has called this with the same `what`; raises `PeerLost` that names the missing ones."""
        if self._store is not None:
            self._store.wait_for_all(what, timeout)

    # -- operations

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of x over all ranks, in place."""
        if self.world_size > 1:
            self._joined().all_reduce(x)
        return x

    def all_gather_last(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, part] of all ranks side by side: [T, world_size * part]."""
        if self.world_size == 1:
            return x
        return torch.cat(self.all_gather(x), dim=-1)

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x of every rank, in their order."""
        if self.world_size == 1:
            return [x]
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world_size)]
        self._joined().all_gather(parts, x)
        return parts

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's x, in place; x is contiguous."""
        if self.world_size > 1:
            self._joined().broadcast(x)
        return x

    def gather_numbers(self, *numbers: int) -> list[list[int]]:
        """The numbers of every rank, in the order of ranks."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        return [theirs.tolist() for theirs in self.all_gather(mine)]

    def _joined(self) -> Collectives:
        if self._links is None:
            raise PeerLost("this rank has left its tensor parallel group")
        return self._links


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

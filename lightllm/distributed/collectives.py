"""What the ranks of a tensor parallel group do together, whatever carries it (gloo, NCCL)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class PeerLost(RuntimeError):
    """Another rank did not take part in an operation: it failed, it is gone, or it took too long."""


class Superseded(Exception):
    """Ranks were about to meet for a Router that is gone; another one has asked for them since."""


class Collectives(Protocol):
    """Every rank calls the same operations in the same order, with tensors of the same shape and dtype; an operation
    of CPU ranks raises `PeerLost` when that does not happen in time.

    GPU ranks only enqueue: a rank that is lost shows as a round that never ends. NCCL's watchdog ends the process for
    operations that were enqueued one by one (SIGABRT after the timeout); those in captured graphs, and sums through symmetric
    memory, wait for ever, until the Supervisor finds that no round is finished (--round_timeout) and starts all ranks anew."""

    def all_reduce(self, x: torch.Tensor) -> None:
        """The sum over all ranks, in place; the same bits on every rank."""

    def all_gather(self, parts: list[torch.Tensor], x: torch.Tensor) -> None:
        """`x` of every rank, in their order, into `parts`."""

    def broadcast(self, x: torch.Tensor) -> None:
        """Rank 0's `x` into that of all ranks."""

    def close(self) -> None:
        """Ends what is under way; the other ranks' operations fail."""

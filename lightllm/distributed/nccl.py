"""Collective operations of GPU ranks: NCCL, and torch's symmetric memory for small sums where the GPUs offer it."""

from __future__ import annotations

import datetime
import fcntl
import logging
import os
import socket
import struct

import torch
import torch.distributed as dist

from lightllm.distributed.collectives import PeerLost

ONE_SHOT_BYTES = 256 << 10
"""Sums up to this size go through symmetric memory: every rank reads all parts at once, instead of passing them round."""

_SIOCGIFADDR = 0x8915

logger = logging.getLogger(__name__)


class NcclCollectives:
    """Joins on construction, on the current CUDA device. Operations are queued on the current stream; may be captured."""

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, address: str, timeout: float, one_machine: bool
    ) -> None:
        """address: of this machine, where the others reach it. Raises `PeerLost`."""
        if interface := _interface_of(address):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
        device = torch.device("cuda", torch.cuda.current_device())
        try:
            dist.init_process_group(
                "nccl", store=store, rank=rank, world_size=world_size, device_id=device,
                timeout=datetime.timedelta(seconds=timeout),
            )  # fmt: skip
            self._sums = _SymmetricSums.make(device) if one_machine else None
        except RuntimeError as error:
            raise PeerLost(f"the ranks cannot connect to each other: {error}") from error

    def all_reduce(self, x: torch.Tensor) -> None:
        if self._sums is not None and self._sums.takes(x):
            self._sums.all_reduce(x)
        else:
            dist.all_reduce(x)

    def all_gather(self, parts: list[torch.Tensor], x: torch.Tensor) -> None:
        dist.all_gather(parts, x)

    def broadcast(self, x: torch.Tensor) -> None:
        dist.broadcast(x, src=0)

    def close(self) -> None:
        """Kernels that wait for another rank are ended too."""
        self._sums = None
        dist.distributed_c10d._abort_process_group()


class _SymmetricSums:
    """A buffer that every rank can read, and the one-kernel sum over it (torch.ops.symm_mem)."""

    def __init__(self, device: torch.device) -> None:
        import torch.distributed._symmetric_memory as symmetric_memory

        group = dist.group.WORLD
        assert group is not None
        self._buffers = {
            dtype: symmetric_memory.empty(ONE_SHOT_BYTES // dtype.itemsize, dtype=dtype, device=device)
            for dtype in (torch.bfloat16, torch.float32)
        }
        for buffer in self._buffers.values():
            symmetric_memory.rendezvous(buffer, group.group_name)
        self._group_name = group.group_name

    @classmethod
    def make(cls, device: torch.device) -> _SymmetricSums | None:
        """None where a GPU cannot read its neighbours' memory; all ranks come to the same answer."""
        sums = None
        try:
            sums = cls(device)
        except (RuntimeError, ImportError) as error:
            logger.info("small sums go through NCCL: no symmetric memory (%s)", str(error).partition("\n")[0])
        everybody = torch.tensor([sums is not None], dtype=torch.int32, device=device)
        dist.all_reduce(everybody, op=dist.ReduceOp.MIN)
        return sums if everybody.item() else None

    def takes(self, x: torch.Tensor) -> bool:
        """The kernel reads 16 bytes at a time."""
        aligned = x.nbytes % 16 == 0 and x.data_ptr() % 16 == 0
        return aligned and x.nbytes <= ONE_SHOT_BYTES and x.dtype in self._buffers

    def all_reduce(self, x: torch.Tensor) -> None:
        flat = x.view(-1)
        part = self._buffers[x.dtype][: flat.numel()]
        torch.ops.symm_mem.one_shot_all_reduce_copy_out(part, flat, "sum", self._group_name, flat)


def _interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address (netdevice(7), SIOCGIFADDR)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                record = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no IPv4 address
                continue
            if socket.inet_ntoa(record[20:24]) == address:
                return name
    return None

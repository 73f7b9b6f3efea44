"""Memory of a CPU in pages of 2 MiB, for what every round reads: weights and KV memory. With pages of 4 KiB a processor looks up an
address for each of them, in a virtual machine at two levels, and waits for it.

Linux gives such pages to whoever asks ("madvise", its usual setting) and has them; elsewhere nothing changes.
"""

from __future__ import annotations

import ctypes
import mmap
import threading

import torch

_PAGE = 2 << 20
_CHUNK = 64 << 20
_LINE = 64
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def advise(data: torch.Tensor) -> torch.Tensor:
    """The same tensor; its memory comes in large pages from now on, where it was not touched yet."""
    if _ADVICE is not None and data.device.type == "cpu" and data.nbytes >= _PAGE:
        start = -(-data.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (data.data_ptr() + data.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
        # A kernel without such pages refuses, which is as good as before.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_ADVICE))
    return data


def mapped(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes] that are zero, with storage of their own."""
    with torch.inference_mode(False):
        return advise(
            torch.frombuffer(
                mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8
            )
        )


class _Arena:
    """Tensors side by side: where each had a mapping of its own, its first and last MiB would lie in small pages."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
        """[nbytes / itemsize], from a cache line on; the memory of a chunk is given back with the last of its tensors."""
        needed = -(-nbytes // _LINE) * _LINE
        # Tensors made within torch's inference mode could be written to there alone, and threads have a mode of their own.
        with self._lock, torch.inference_mode(False):
            if len(self._free) < needed:
                chunk = torch.empty(max(needed, _CHUNK) + _PAGE, dtype=torch.uint8)
                self._free = advise(chunk[-chunk.data_ptr() % _PAGE :])
            taken, self._free = self._free[:nbytes], self._free[needed:]
            return taken.view(dtype)


_arena = _Arena()


def in_huge_pages(nbytes: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """[nbytes / itemsize] of memory that is kept for long and read often, not initialised."""
    return _arena.take(nbytes, dtype)

"""KV memory: how many slots there are, and the tensors that hold them.

    kv[layer]:     a `KvLayer`                           one slot a token
    req_to_token:  int32 [max_rows + 1, max_len]         the slot of every position of every row

The last slot and the last row are for padding (hold slot, hold row). Memory is reserved and not touched: on a CPU it
becomes real page by page as slots are used.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable

import torch

from lightllm.config import ServerConfig
from lightllm.errors import DeviceError
from lightllm.machine import available_memory
from lightllm.ops.huge_pages import advise
from lightllm.ops.kv_codes import SCALE_DTYPE, KvFormat
from lightllm.ops.kv_layer import KvLayer

CPU_FRACTION = 0.4
CPU_CEILING = 4 << 30
"""Bytes of KV memory on a CPU unless --mem_fraction asks for more."""
GPU_FRACTION = 0.9
CPU_RESERVE = 96 << 20
"""Bytes that stay free on a CPU: what malloc keeps, and what the other processes grow by while they serve (a child that
renders chat templates takes 25 MiB)."""
_LINE, _ALIKE = 64, 1024
"""Bytes of a cache line; of a slot."""
MIN_SLOTS = 64
"""Slots: a measured size below this is refused."""


@dataclasses.dataclass(frozen=True)
class KvShape:
    """The KV memory of one token on this rank."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    latent_dim: int = 0
    """Elements of the one vector a token that latent attention keeps instead; 0: it has keys and values of heads."""
    format: KvFormat | None = None
    """Of codes that stand for numbers of `dtype`; None: the numbers themselves are kept."""
    apart: bool = False
    """On a CPU: between slots that are a multiple of _ALIKE bytes long lies a cache line. Without it what attention reads side by side,
    a head of many slots, would have to share a few places of the first cache."""

    @property
    def kv_heads(self) -> int:
        """As of `KvLayer`."""
        return 0 if self.latent_dim else self.num_kv_heads

    @property
    def of_token(self) -> tuple[int, int]:
        """Shape of one slot in one layer."""
        per_byte = 1 if self.format is None else self.format.per_byte
        return (1, self.latent_dim) if self.latent_dim else (2 * self.num_kv_heads, self.head_dim // per_byte)

    @property
    def _stored(self) -> torch.dtype:
        return self.dtype if self.format is None else self.format.dtype

    @property
    def _gap(self) -> int:
        """Numbers between one slot and the next."""
        size = self._stored.itemsize
        return _LINE // size if self.apart and math.prod(self.of_token) * size % _ALIKE == 0 else 0

    @property
    def bytes_per_token(self) -> int:
        gap = self.num_layers * self._gap * self._stored.itemsize
        if self.format is not None:
            return gap + self.num_layers * 2 * self.num_kv_heads * self.format.bytes_per_head(self.head_dim)
        return gap + self.num_layers * math.prod(self.of_token) * self.dtype.itemsize

    def described(self, slots: int) -> str:
        """For people."""
        name = str(self.dtype).removeprefix("torch.") if self.format is None else self.format.name
        size = gib((slots + 1) * self.bytes_per_token)
        return f"{slots} tokens of {self.bytes_per_token / 1024:.2f} KiB ({name}), {size}"

    def make_layer(self, slots: int, device: torch.device) -> KvLayer:
        """Memory that is not touched, but for the last slot."""
        heads, width = self.of_token
        distance = heads * width + self._gap
        memory = torch.empty((slots + 1) * distance, dtype=self._stored, device=device)
        advise(
            memory[: slots * distance]
        )  # but for the last slot, which would be a large page of every layer
        data = memory.as_strided((slots + 1, heads, width), (distance, width, 1))
        layer = KvLayer(data, self.kv_heads, self._scales(slots, device))
        layer.data[slots].zero_()
        return layer

    def _scales(self, slots: int, device: torch.device) -> torch.Tensor | None:
        if self.format is None:
            return None
        size = (slots + 1, 2 * self.num_kv_heads, self.format.groups(self.head_dim))
        scales = torch.empty(size, dtype=SCALE_DTYPE, device=device)
        scales[slots].zero_()
        return scales


class KvMemory:
    """The tensors. `slots` and `max_rows` are the hold slot and the hold row."""

    def __init__(self, shape: KvShape, slots: int, max_rows: int, max_len: int, device: torch.device) -> None:
        self.slots = slots
        self.max_rows = max_rows
        self.max_len = max_len
        self.kv = [shape.make_layer(slots, device) for _ in range(shape.num_layers)]
        self.req_to_token = torch.empty((max_rows + 1, max_len), dtype=torch.int32, device=device)
        self.req_to_token[max_rows].fill_(slots)


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is kept beside the KV memory for each row."""

    count: int
    max_len: int
    """Tokens of the longest request, if there are as many slots."""
    vocab_size: int

    def bytes_beside(self, slots: int) -> int:
        """Once every row has had a longest request with penalties: its slots (`req_to_token`), and its distinct tokens with
        their counts (`TokenCounts`). No request is longer than all slots."""
        longest = min(self.max_len, slots)
        return (self.count + 1) * (longest * 4 + min(longest, self.vocab_size) * 12)


NO_ROWS = Rows(0, 0, 0)


def choose_slots(
    config: ServerConfig,
    shape: KvShape,
    needed: int,
    measure_gpu: "Callable[[], GpuMemory] | None" = None,
    free: int | None = None,
    ranks: int = 1,
    rows: Rows = NO_ROWS,
    encoding: int = 0,
) -> int:
    """How many slots: `--max_total_token_num`, or what the memory allows. Raises `DeviceError` if it is too little.

    needed: bytes that are needed beside it on a CPU, without those of the rows. On a GPU: measure_gpu finds that out, only when
    measuring is needed; free: its free bytes. ranks: how many share a CPU's memory. encoding: bytes that vision
    encoders on this device need beside their weights; on a CPU, where memory is only taken when it is used, never more than half of
    what is available.
    """
    if measure_gpu is None or free is None:
        available = available_memory() // ranks
        needed += CPU_RESERVE // ranks + min(encoding // ranks, available // 2)
        if config.max_total_token_num is not None:
            return _given_slots(config.max_total_token_num, shape, available, needed, rows)
        ceiling = CPU_CEILING // ranks
        return measured_slots_cpu(available, config.mem_fraction, shape, needed, ceiling, rows)
    if config.max_total_token_num is not None:
        return _given_slots(config.max_total_token_num, shape, free - encoding)
    memory = dataclasses.replace(measure_gpu(), encoding=encoding)
    return measured_slots_gpu(memory, config.mem_fraction or GPU_FRACTION, shape, rows)


def measured_slots_cpu(
    available: int,
    fraction: float | None,
    shape: KvShape,
    needed: int,
    ceiling: int = CPU_CEILING,
    rows: Rows = NO_ROWS,
) -> int:
    """A share of the `available` bytes, which leaves the `needed` ones and those of the rows free; without a `fraction` at most
    `ceiling`."""
    budget = int(available * (fraction or CPU_FRACTION))
    if fraction is None:
        budget = min(budget, ceiling)
    slots = min(budget // shape.bytes_per_token - 1, _fitting(available - needed, shape, rows))
    what = f"{gib(available)} of memory are available and rounds need {gib(needed)} beside it"
    return _checked(slots, min(budget, available - needed), shape, what)


@dataclasses.dataclass(frozen=True)
class GpuMemory:
    """Bytes of a GPU, after the weights are loaded and one largest prefill has run."""

    total: int
    free: int
    """Before that prefill, or afterwards if less is left."""
    activation_peak: int
    graph_bytes: int = 0
    """What decode graphs keep."""
    encoding: int = 0
    """What vision encoders on it need beside their weights."""


def measured_slots_gpu(memory: GpuMemory, fraction: float, shape: KvShape, rows: Rows = NO_ROWS) -> int:
    """Fills `fraction` of the whole device, less what is in use already and the activation peak."""
    used = memory.total - memory.free
    budget = (
        int(memory.total * fraction) - used - memory.activation_peak - memory.graph_bytes - memory.encoding
    )
    what = (
        f"of {gib(memory.total)} of GPU memory {gib(used)} are in use (weights included), a round needs "
        f"{gib(memory.activation_peak)}, decode graphs {gib(memory.graph_bytes)} and encoding images {gib(memory.encoding)}"
    )
    return _checked(_fitting(budget, shape, rows), budget, shape, what)


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _fitting(room: int, shape: KvShape, rows: Rows) -> int:
    """The most slots that fit, with what the rows keep beside them, into `room` bytes; none: -1."""
    most = range(max(room // shape.bytes_per_token, 0))

    def size(slots: int) -> int:
        return (slots + 1) * shape.bytes_per_token + rows.bytes_beside(slots)

    return bisect.bisect_right(most, room, key=size) - 1


def _checked(slots: int, budget: int, shape: KvShape, what: str) -> int:
    if slots < MIN_SLOTS:
        raise DeviceError(
            f"Too little memory for the KV memory: {what}, which leaves {gib(max(budget, 0))}, but {MIN_SLOTS} tokens "
            f"of {shape.bytes_per_token / 1024:.1f} KiB are the least.",
            "Free memory, raise --mem_fraction, lower --batch_max_tokens (of images: --max_image_pixels), or take a smaller model.",
        )
    return slots


def _given_slots(slots: int, shape: KvShape, available: int, needed: int = 0, rows: Rows = NO_ROWS) -> int:
    wanted, beside = (slots + 1) * shape.bytes_per_token, needed + rows.bytes_beside(slots)
    if wanted + beside > available:
        more = f" and rounds need {gib(beside)} beside it" if beside else ""
        raise DeviceError(
            f"--max_total_token_num {slots} needs {gib(wanted)} of KV memory ({shape.bytes_per_token / 1024:.1f} KiB "
            f"a token), but {gib(available)} are available{more}.",
            f"Lower it to at most {max(_fitting(available - needed, shape, rows), 0)}, or leave it out.",
        )
    return slots

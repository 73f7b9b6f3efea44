"""Attention of a batch written as plainly as possible, and random batches to compare implementations with it."""

import dataclasses

import numpy as np
import torch

from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.attention_spec import AttentionSpec, BlockSparsity
from lightllm.ops.kv_codes import FORMATS, dequantize, quantize
from lightllm.ops.kv_layer import KvLayer


def attention_reference(
    q: torch.Tensor, kv: torch.Tensor, tables: list[list[int]], q_lens: list[int], form: AttentionSpec
) -> torch.Tensor:
    """A loop over tokens and heads in float64; tables: slots of each entry's context. Returns [T, heads, head_dim]."""
    outputs: list[torch.Tensor] = []
    for table, q_len in zip(tables, q_lens):
        for position in range(len(table) - q_len, len(table)):
            first = max(position + 1 - form.window, 0) if form.window else 0
            seen = kv[table[first : position + 1]].double()
            distance = position - torch.arange(first, position + 1)
            outputs.append(_one_token(q[len(outputs)].double(), seen, distance, form))
    return torch.stack(outputs)


def _one_token(
    q: torch.Tensor, seen: torch.Tensor, distance: torch.Tensor, form: AttentionSpec
) -> torch.Tensor:
    heads, kv_heads = q.shape[0], seen.shape[1] // 2
    output = torch.empty_like(q)
    for head in range(heads):
        group = head * kv_heads // heads
        scores = seen[:, group] @ q[head] * form.scale
        if form.softcap:
            scores = form.softcap * torch.tanh(scores / form.softcap)
        if form.alibi_slopes is not None:
            scores = scores - form.alibi_slopes[head].double() * distance
        if form.sinks is not None:
            scores = torch.cat((scores, form.sinks[head : head + 1].double()))
        if form.sparsity is not None:
            scores[: len(seen)][_left_out(form.sparsity, head, distance)] = float("-inf")
        weights = scores.softmax(0)[: len(seen)]
        output[head] = weights @ seen[:, kv_heads + group]
    return output


def _left_out(sparsity: BlockSparsity, head: int, distance: torch.Tensor) -> torch.Tensor:
    """Of one query, whose whole context is the keys at these distances: bool [keys]."""
    last, offset, result = int(distance[0]), int(sparsity.offsets[head]), []
    for key in range(last + 1):
        query_block, key_block = last // sparsity.block_size, key // sparsity.block_size
        near = query_block - key_block < sparsity.local_blocks
        in_stride = (key_block + 1 + offset) % sparsity.stride == 0
        result.append(not near and not in_stride)
    return torch.tensor(result)


FORMS = {
    "plain": {},
    "window": {"window": 7},
    "window of one": {"window": 1},
    "window wider than every context": {"window": 100_000},
    "softcap": {"softcap": 2.5},
    "alibi": {"alibi": True},
    "sinks": {"sinks": True},
    "window and sinks": {"window": 7, "sinks": True},
    "window and softcap": {"window": 20, "softcap": 2.5},
    "blocks left out": {"sparsity": (4, 3, 4)},
    "most blocks left out": {"sparsity": (16, 1, 5)},
    "everything but a window, blocks left out": {
        "softcap": 1.5, "alibi": True, "sinks": True, "sparsity": (3, 2, 3),
    },
    "everything": {"window": 17, "softcap": 1.5, "alibi": True, "sinks": True},
}  # fmt: skip
WITHIN_OTHERS = ("plain", "blocks left out", "window and sinks", "window and softcap")
"""Forms whose parts the others have too."""


def make_spec(
    heads: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    alibi: bool = False,
    sinks: bool = False,
    sparsity: tuple[int, int, int] | None = None,
) -> AttentionSpec:
    """sparsity: block size, local blocks, stride; heads differ in where their stride begins."""
    slopes = 2.0 ** -torch.linspace(0.5, 8, heads) if alibi else None
    sink_scores = torch.linspace(-1, 2, heads) if sinks else None
    offsets = torch.arange(heads, dtype=torch.int32)
    blocks = BlockSparsity(*sparsity, offsets) if sparsity else None
    return AttentionSpec(scale, window, softcap, slopes, sink_scores, blocks)


def spec_on(form: AttentionSpec, device: torch.device) -> AttentionSpec:
    tensors = {
        name: tensor.to(device)
        for name in ("alibi_slopes", "sinks")
        if (tensor := getattr(form, name)) is not None
    }
    sparsity = form.sparsity
    if sparsity is not None:
        sparsity = dataclasses.replace(sparsity, offsets=sparsity.offsets.to(device))
    return dataclasses.replace(form, **tensors, sparsity=sparsity)


@dataclasses.dataclass
class AttentionCase:
    """A batch with random contents; KV slots that belong to nobody are NaN. `layout` of the slots: "run" (one run an
    entry), "reversed" or "shuffled"."""

    kv_lens: list[int]
    q_lens: list[int]
    num_decode: int
    layout: str = "run"
    heads: tuple[int, int] = (8, 2)
    """Query heads, KV heads."""
    head_dim: int = 16
    dtype: torch.dtype = torch.float32
    form: str = "plain"
    kv_type: str = "None"
    """Of what KV memory keeps; the expected result is of what is read back of that."""

    def __post_init__(self) -> None:
        total = sum(self.kv_lens)
        generator = torch.Generator().manual_seed(total)
        order = torch.arange(3, total + 3)
        if self.layout == "shuffled":
            order = order[torch.randperm(total, generator=generator)]
        elif self.layout == "reversed":
            order = order.flip(0)
        self.tables = [part.tolist() for part in order.split(self.kv_lens)]
        size = (total + 9, 2 * self.heads[1], self.head_dim)
        self.kv = torch.full(size, float("nan"), dtype=self.dtype)
        self.kv[order] = torch.randn(total, *size[1:], generator=generator).to(self.dtype)
        self.codes = quantize(self.kv, FORMATS[self.kv_type]) if self.kv_type in FORMATS else None
        if self.codes is not None:
            self.kv = dequantize(*self.codes, torch.float32)
        q = torch.randn(sum(self.q_lens), self.heads[0], self.head_dim, generator=generator)
        self.q = q.to(self.dtype)
        rows = 2 * len(self.kv_lens) + 1
        self.req_to_token = torch.full((rows, max(self.kv_lens) + 2), total + 8, dtype=torch.int32)
        self.rows = [2 * i + 1 for i in range(len(self.kv_lens))]
        for row, table in zip(self.rows, self.tables):
            self.req_to_token[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
        self.attention_spec = make_spec(self.heads[0], self.head_dim**-0.5, **FORMS[self.form])

    def expected(self) -> torch.Tensor:
        """float64 [T, heads, head_dim]"""
        return attention_reference(self.q, self.kv, self.tables, self.q_lens, self.attention_spec)

    @property
    def num_decode_tokens(self) -> int:
        return sum(self.q_lens[: self.num_decode])

    def layer_on(self, device: torch.device) -> KvLayer:
        if self.codes is not None:
            codes, scales = (part.to(device) for part in self.codes)
            return KvLayer(codes, self.heads[1], scales)
        return KvLayer(self.kv.to(device), self.heads[1])

    def spec_on(self, device: torch.device) -> AttentionSpec:
        return spec_on(self.attention_spec, device)

    def metadata(self, device: torch.device, num_sms: int = 0) -> AttentionMetadata:
        """What an implementation reads, on the device that it is tested on."""
        q_lens = torch.tensor(self.q_lens)
        return AttentionMetadata(
            rows=torch.tensor(self.rows, device=device),
            q_start=torch.nn.functional.pad(q_lens.cumsum(0), (1, 0)).to(device, torch.int32),
            kv_len=torch.tensor(self.kv_lens, dtype=torch.int32, device=device),
            req_to_token=self.req_to_token.to(device),
            num_decode=self.num_decode,
            num_tokens=int(q_lens.sum()),
            max_q_len=max(self.q_lens),
            max_kv_len=max(self.kv_lens),
            num_decode_tokens=self.num_decode_tokens,
            no_prefix=self.q_lens[self.num_decode :] == self.kv_lens[self.num_decode :],
            prefill_lens=np.array([self.q_lens, self.kv_lens])[:, self.num_decode :],
            num_sms=num_sms,
        )

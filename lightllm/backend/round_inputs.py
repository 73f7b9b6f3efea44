"""From a `Round` to what the model reads: checks it, sends what is new to the device, and lays out the batch.

All rounds use the same device buffers, one after the other, so that a captured graph finds its inputs where it found
them when it was captured. What the host knows travels in one packet; the rest is worked out on the device
(`ops/round_inputs.py`) from what the rows keep there.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from lightllm.backend.device import Device, StagingBuffer
from lightllm.backend.kv_memory import KvMemory
from lightllm.backend.pooled_spans import PooledSpan, pooled_positions, pooled_spans
from lightllm.backend.row_state import Feature, RowState
from lightllm.model_folder.pooling import PoolingMethod
from lightllm.ops.attention_metadata import AttentionMetadata
from lightllm.ops.batch import Batch, Wanted
from lightllm.ops.round_inputs import build_round_inputs
from lightllm.protocol.rounds import Round

_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)


@dataclasses.dataclass(frozen=True)
class PromptSpan:
    """Prompt tokens whose log-probabilities one entry wants: [start, start + len(token_ids)), predicted by the
    positions of the round just before each."""

    entry: int
    start: int
    token_ids: np.ndarray
    alternatives: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A round whose inputs are on their way. `batch.logit_index` holds the sampling positions, then those of
    `prompt_spans`; a decode batch may be padded at its end."""

    batch: Batch
    sampled_rows: np.ndarray
    """int64 [S]"""
    positions: np.ndarray
    """int64 [S]: output number of the token that is sampled."""
    positions_on_device: torch.Tensor
    """int64 [S]; valid until the next round is prepared."""
    prompt_spans: list[PromptSpan]
    pooled_spans: list[PooledSpan] = dataclasses.field(default_factory=list)
    """Of a model for vectors: then `batch.logit_index` holds their positions and no others."""


class RoundInputs:
    """The device buffers of rounds, and how rounds are laid out in them."""

    def __init__(
        self,
        device: Device,
        memory: KvMemory,
        state: RowState,
        max_tokens: int,
        pooling: PoolingMethod | None = None,
    ) -> None:
        """max_tokens: of the largest usual round; a larger one gets buffers of its own; pooling: of a model for vectors."""
        self._pooling = pooling
        self._device = device
        self._memory = memory
        self._state = state
        where = device.torch_device
        entries = memory.max_rows
        self._max_tokens = max(max_tokens, entries)
        self._room = torch.zeros(
            _packet_of_chunks(entries, self._max_tokens, self._max_tokens, entries).nbytes,
            dtype=torch.uint8,
            device=where,
        )
        self._positions = torch.zeros((2, self._max_tokens), dtype=torch.int64, device=where)
        """Context indices and rope positions."""
        self._decode_ids = torch.zeros(entries, dtype=torch.int64, device=where)
        self._decode_starts = torch.arange(entries + 1, dtype=torch.int32, device=where)
        self._decode_layouts: dict[int, tuple[StagingBuffer, Batch, torch.Tensor]] = {}

    def complete(self, batch: Batch) -> None:
        """Enqueues what the device adds to a batch; before `forward`, and part of what a graph captures."""
        entries, state = batch.attention, self._state
        build_round_inputs(
            entries.rows, entries.q_start, entries.kv_len, batch.slots, entries.num_decode, entries.max_q_len,
            state.last_token, state.rope_delta, batch.input_ids, batch.positions, batch.rope_positions,
            entries.req_to_token,
        )  # fmt: skip

    def decode_batch(self, size: int) -> Batch:
        """The batch of `size` decode entries: always the same tensors, which each `decode` of this size fills anew."""
        return self._decode_layout(size)[1]

    def fill_hold(self, size: int) -> None:
        """Makes all entries of that batch padding."""
        self._send_decode(size, *(np.zeros(0, dtype=np.int64) for _ in range(4)))

    def decode(self, round: Round, size: int) -> Prepared:
        """Sends a decode-only round, padded to `size` entries. Raises `ValueError` if it cannot be executed; joins and
        leaves have been applied already."""
        check_round(round, self._memory, self._state)
        rows = round.rows.astype(np.int64)
        sampled = round.samples.nonzero()[0]
        if len(sampled) < len(rows):
            raise ValueError(f"round {round.seq}: a decode row that does not sample")
        positions = round.kv_len - self._state.prompt_len[rows]
        self._send_decode(size, rows, round.kv_len, round.slots, positions)
        _, batch, on_device = self._decode_layout(size)
        if size == len(rows):  # not padded: it may be computed as it is, with what the host knows of it
            known = dataclasses.replace(batch.attention, max_kv_len=int(round.kv_len.max()))
            batch = dataclasses.replace(batch, attention=known)
        return Prepared(batch, rows, positions, on_device[: len(rows)], [])

    def chunks(self, round: Round) -> Prepared:
        """Sends a round with prefill chunks. Raises `ValueError` as `decode`."""
        check_round(round, self._memory, self._state)
        rows = round.rows.astype(np.int64)
        kv_len = round.kv_len.astype(np.int64)
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(round.q_len, out=starts[1:])
        sampled = round.samples.nonzero()[0]
        sampled_rows = rows[sampled]
        positions = kv_len[sampled] - self._state.prompt_len[sampled_rows]
        logit_index = starts[sampled + 1] - 1
        spans = _prompt_spans(round, self._state, rows)
        if spans:
            wanted = [
                starts[s.entry + 1] - kv_len[s.entry] + s.start - 1 + np.arange(len(s.token_ids))
                for s in spans
            ]
            logit_index = np.concatenate([logit_index, *wanted])
        pooled: list[PooledSpan] = []
        if self._pooling is not None:
            pooled = pooled_spans(self._pooling, round, starts, self._state.prompt_len[rows])
            logit_index = pooled_positions(pooled)
        tokens = len(round.slots)
        packet = _packet_of_chunks(len(rows), tokens, len(logit_index), len(sampled))
        room, all_positions = self._room, self._positions
        if packet.nbytes > len(room) or tokens > all_positions.shape[1]:
            room = torch.empty(packet.nbytes, dtype=torch.uint8, device=room.device)
            all_positions = torch.empty((2, tokens), dtype=torch.int64, device=room.device)
        ids = np.zeros(tokens, dtype=np.int32)
        ids[round.num_decode :] = round.token_ids
        packet.send(self._device, [rows, kv_len, starts, round.slots, ids, logit_index, positions], room)
        on_device = packet.views(room)
        rows_there, kv_len_there, starts_there, slots, input_ids, logits_there, numbers = on_device
        prefill_lens = np.stack([round.q_len, kv_len])[:, round.num_decode :]
        attention = AttentionMetadata(
            rows=rows_there,
            q_start=starts_there,
            kv_len=kv_len_there,
            req_to_token=self._memory.req_to_token,
            num_decode=round.num_decode,
            num_tokens=tokens,
            max_q_len=int(round.q_len.max()),
            max_kv_len=int(kv_len.max()),
            no_prefix=bool((prefill_lens[0] == prefill_lens[1]).all()),
            prefill_lens=prefill_lens,
        )
        context, rope = all_positions[:, :tokens]
        batch = Batch(input_ids, context, rope, slots, attention, logits_there, self._memory.kv)
        if self._device.torch_device.type == "cpu" and self._pooling is None:
            batch.wanted = _wanted(round, starts, attention, logit_index, spans)
        return Prepared(batch, sampled_rows, positions, numbers, spans, pooled)

    def _send_decode(
        self, size: int, rows: np.ndarray, kv_len: np.ndarray, slots: np.ndarray, positions: np.ndarray
    ) -> None:
        packet, _, _ = self._decode_layout(size)
        arrays = [rows, kv_len, slots, positions]
        if len(rows) < size:
            holds = (self._memory.max_rows, 1, self._memory.slots, 0)
            extra = size - len(rows)
            arrays = [np.append(array, np.full(extra, hold)) for array, hold in zip(arrays, holds)]
        packet.send(self._device, arrays, self._room)

    def _decode_layout(self, size: int) -> tuple[StagingBuffer, Batch, torch.Tensor]:
        if size not in self._decode_layouts:
            packet = StagingBuffer([(size, _INT64), (size, _INT32), (size, _INT64), (size, _INT64)])
            rows, kv_len, slots, positions = packet.views(self._room)
            memory = self._memory
            attention = AttentionMetadata(
                rows, self._decode_starts[: size + 1], kv_len, memory.req_to_token, size, size,
                max_q_len=1, max_kv_len=memory.max_len,
            )  # fmt: skip
            context, rope = self._positions[:, :size]
            batch = Batch(self._decode_ids[:size], context, rope, slots, attention, None, memory.kv)
            self._decode_layouts[size] = packet, batch, positions
        return self._decode_layouts[size]


def _packet_of_chunks(entries: int, tokens: int, logits: int, sampled: int) -> StagingBuffer:
    """Rows, context lengths, starts, slots, token ids, positions of logits, output numbers."""
    return StagingBuffer(
        [(entries, _INT64), (entries, _INT32), (entries + 1, _INT32), (tokens, _INT64), (tokens, _INT64),
         (logits, _INT64), (sampled, _INT64)]
    )  # fmt: skip


def _wanted(
    round: Round,
    starts: np.ndarray,
    attention: AttentionMetadata,
    logit_index: np.ndarray,
    spans: list[PromptSpan],
) -> Wanted | None:
    """Decode entries; of a chunk its last token if that samples, or all if log-probabilities of its prompt are wanted: so what
    is computed of an entry does not depend on the others. None: all tokens of the round."""
    decoded = round.num_decode
    counts = np.where(round.samples, 1, 0)
    counts[:decoded] = 1
    for span in spans:
        counts[span.entry] = round.q_len[span.entry]
    entries = counts.nonzero()[0]
    counts = counts[entries]
    ends = np.cumsum(counts)
    if len(entries) and ends[-1] == starts[-1]:
        return None
    tokens = np.repeat(starts[entries + 1] - ends, counts) + np.arange(counts.sum())
    chosen = torch.from_numpy(entries)
    kv_len = attention.kv_len[chosen]
    metadata = dataclasses.replace(
        attention,
        rows=attention.rows[chosen],
        q_start=torch.from_numpy(np.append(0, ends).astype(np.int32)),
        kv_len=kv_len,
        num_tokens=len(tokens),
        max_q_len=int(counts.max(initial=1)),
        no_prefix=False,
        prefill_lens=np.stack([counts, kv_len.numpy()])[:, decoded:],
    )
    index = np.searchsorted(tokens, logit_index)
    return Wanted(torch.from_numpy(tokens), metadata, torch.from_numpy(index))


def _prompt_spans(round: Round, state: RowState, rows: np.ndarray) -> list[PromptSpan]:
    """Position p predicts prompt token p + 1; token 0 has no log-probability."""
    spans = []
    for entry in ((state.features[rows] & Feature.PROMPT) != 0).nonzero()[0].tolist():
        row, end = int(rows[entry]), int(round.kv_len[entry])
        start = end - int(round.q_len[entry]) + 1
        token_ids = state.prompt_ids[row][start : end + 1]
        if len(token_ids):
            spans.append(PromptSpan(entry, start, token_ids.astype(np.int64), state.prompt_logprobs[row]))
    return spans


def check_round(round: Round, memory: KvMemory, state: RowState) -> None:
    """Raises `ValueError` for a round that would read or write where it must not."""
    n, decodes, total = len(round.rows), round.num_decode, len(round.slots)
    if not (n == len(round.q_len) == len(round.kv_len) == len(round.samples)) or not 0 <= decodes <= n:
        raise ValueError(f"round {round.seq}: its arrays do not fit together")
    if n == 0:
        return
    rows, q_len, kv_len = round.rows, round.q_len, round.kv_len
    if rows.min() < 0 or rows.max() >= memory.max_rows or not (state.features[rows] & Feature.JOINED).all():
        raise ValueError(f"round {round.seq}: a row is outside [0, {memory.max_rows}) or was never joined")
    if np.bincount(rows).max() > 1:
        raise ValueError(f"round {round.seq}: a row occurs twice")
    if q_len.min() < 1 or (q_len[:decodes] != 1).any() or int(q_len.sum()) != total:
        raise ValueError(f"round {round.seq}: q_len does not fit the {total} slots and {decodes} decode rows")
    if (kv_len < q_len).any() or kv_len.max() > memory.max_len:
        raise ValueError(f"round {round.seq}: a context length is below q_len or above {memory.max_len}")
    if round.slots.min() < 0 or round.slots.max() >= memory.slots:
        raise ValueError(f"round {round.seq}: a slot is outside [0, {memory.slots})")
    token_ids = round.token_ids
    if len(token_ids) != total - decodes:
        raise ValueError(
            f"round {round.seq}: {len(token_ids)} token ids for {total - decodes} prefill tokens"
        )
    if len(token_ids) and (token_ids.min() < 0 or token_ids.max() >= state.vocab_size):
        raise ValueError(f"round {round.seq}: a token id is outside the vocabulary of {state.vocab_size}")

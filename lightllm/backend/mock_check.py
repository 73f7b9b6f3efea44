"""Judges rounds like a strict device: the mock backend's `check=1`, and the router's tests."""

from __future__ import annotations

import numpy as np

from lightllm.protocol.messages import ImageSpan
from lightllm.protocol.rounds import Round


class RoundChecker:
    """Keeps the `req_to_token` table that a device would have, and finds what a device could not compute rightly:
    slots out of range or still read by another row, contexts with gaps, decode rows without a token."""

    def __init__(self, slots: int, vocab_size: int) -> None:
        self._slots = slots
        self._vocab_size = vocab_size
        self.attach(None)

    def attach(self, seq: int | None) -> None:
        """No row is in use, and the next round is `seq`, or any."""
        self._contexts: dict[int, list[np.ndarray]] = {}
        """Row -> its KV slots in order, in pieces."""
        self._lengths: dict[int, int] = {}
        self._images: dict[int, list[ImageSpan]] = {}
        self._pending: set[int] = set()
        """Rows whose last entry sampled: a decode entry may follow."""
        self._readers = np.zeros(self._slots, np.int32)
        """How many rows have the slot in their context."""
        self._next_seq = seq

    def resync(self, seq: int) -> None:
        self._next_seq = seq

    def check(self, round: Round) -> str:
        """What is wrong, "" if nothing; a good round is taken into the books."""
        error = self._shape_error(round)
        if error:
            return error
        for row in round.leaves:
            self._leave(row)
        for join in round.joins:
            self._leave(join.row)
            if self._out_of_range(join.prefix_slots):
                return f"row {join.row} has prefix slots outside [0, {self._slots})"
            self._contexts[join.row] = [join.prefix_slots]
            self._lengths[join.row] = len(join.prefix_slots)
            self._readers[join.prefix_slots] += 1
            self._images[join.row] = join.images
        error = self._ids_error(round) or self._entries_error(round)
        if not error:
            self._next_seq = round.seq + 1
        return error

    def keep(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Of what the last round computed for these decode rows, contexts of `lengths` tokens count."""
        for row, length in zip(rows.tolist(), lengths.tolist(), strict=True):
            unused = self._lengths[row] - length
            if unused:
                last = self._contexts[row].pop()
                self._contexts[row].append(last[:-unused])
                self._readers[last[-unused:]] -= 1
                self._lengths[row] = length

    def _shape_error(self, round: Round) -> str:
        total = int(round.q_len.sum())
        if self._next_seq is not None and round.seq != self._next_seq:
            return f"expected round {self._next_seq}"
        if not len(round.rows) == len(round.q_len) == len(round.kv_len) == len(round.samples):
            return "rows, q_len, kv_len and samples differ in length"
        if len(np.unique(round.rows)) != len(round.rows):
            return "a row occurs twice"
        if len(round.slots) != total:
            return f"{len(round.slots)} slots for {total} tokens"
        prefill = int(round.q_len[round.num_decode :].sum())
        if len(round.token_ids) != prefill:
            return f"{len(round.token_ids)} token ids for {prefill} prefill tokens"
        if (round.q_len < 1).any():
            return "an entry computes nothing"
        if not round.samples[: round.num_decode].all():
            return "a decode entry does not sample"
        if self._out_of_range(round.slots):
            return f"slots outside [0, {self._slots})"
        if len(np.unique(round.slots)) != total:
            return "a slot is written twice"
        return ""

    def _ids_error(self, round: Round) -> str:
        """Ids of images are in no vocabulary."""
        outside = (round.token_ids < 0) | (round.token_ids >= self._vocab_size)
        begin = 0
        for row, q_len, kv_len in zip(
            *(array[round.num_decode :].tolist() for array in (round.rows, round.q_len, round.kv_len))
        ):
            chunk = outside[begin : begin + q_len]
            for image in self._images.get(row, []):
                first, last = (
                    place - (kv_len - q_len) for place in (image.start, image.start + image.tokens)
                )
                chunk[max(first, 0) : max(last, 0)] = False
            begin += q_len
        return f"token ids outside [0, {self._vocab_size})" if outside.any() else ""

    def _entries_error(self, round: Round) -> str:
        busy = round.slots[self._readers[round.slots] > 0]
        if len(busy):
            return f"slot {busy[0]} is written while a row still reads it"
        begin = 0
        for entry, (row, q_len, kv_len) in enumerate(
            zip(round.rows.tolist(), round.q_len.tolist(), round.kv_len.tolist(), strict=True)
        ):
            if row not in self._contexts:
                return f"row {row} has not joined"
            if self._lengths[row] + q_len != kv_len:
                return f"row {row} has {self._lengths[row]} tokens in context, {q_len} new ones do not make {kv_len}"
            if entry < round.num_decode and row not in self._pending:
                return f"row {row} decodes without a sampled token"
            self._contexts[row].append(round.slots[begin : begin + q_len])
            self._lengths[row] = kv_len
            (self._pending.add if round.samples[entry] else self._pending.discard)(row)
            begin += q_len
        self._readers[round.slots] += 1
        return ""

    def _leave(self, row: int) -> None:
        for piece in self._contexts.pop(row, []):
            self._readers[piece] -= 1
        self._pending.discard(row)

    def _out_of_range(self, slots: np.ndarray) -> bool:
        return len(slots) > 0 and not 0 <= slots.min() <= slots.max() < self._slots

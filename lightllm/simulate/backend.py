"""A device on a virtual clock: it counts, and says EOS when a request has said as much as its trace wants."""

from __future__ import annotations

from collections import deque

import numpy as np

from lightllm.protocol.rounds import Round, RoundResult
from lightllm.simulate.latency import LatencyModel
from lightllm.simulate.trace import EOS, WORD

NEVER = float("inf")


class SimulatedBackend:
    """Executes rounds in the order in which they come, one after the other. It knows a request by its seed."""

    def __init__(self, latency: LatencyModel, max_rows: int, ends: np.ndarray) -> None:
        """`ends` int32: seed -> context length at which EOS is sampled; read when the request joins a row."""
        self._latency = latency
        self._ends = ends
        self._end_of_row = np.zeros(max_rows, dtype=np.int32)
        self.seeds = np.zeros(max_rows, dtype=np.int64)
        """Row -> seed of the request that joined it last."""
        self._flying: deque[tuple[float, RoundResult]] = deque()
        self._free_at = 0.0
        self.busy = 0.0
        """Seconds spent in rounds."""

    def use_ends(self, ends: np.ndarray) -> None:
        """The table has moved."""
        self._ends = ends

    def use_latency(self, latency: LatencyModel) -> None:
        """The device is another one from the next round on."""
        self._latency = latency

    @property
    def next_done(self) -> float:
        """When the oldest round in flight is done; never if there is none."""
        return self._flying[0][0] if self._flying else NEVER

    def submit(self, round_: Round, now: float) -> None:
        for join in round_.joins:
            self._end_of_row[join.row] = self._ends[join.seed]
            self.seeds[join.row] = join.seed
        sampled = round_.samples == 1
        ends = round_.kv_len[sampled] == self._end_of_row[round_.rows[sampled]]
        tokens = np.where(ends, EOS, WORD).astype(np.int32)
        seconds = self._latency.seconds(len(round_.slots), int(round_.kv_len.sum()))
        self._free_at = max(self._free_at, now) + seconds
        self.busy += seconds
        result = RoundResult(round_.seq, tokens, np.zeros(len(tokens), dtype=np.float32), seconds=seconds)
        self._flying.append((self._free_at, result))

    def take(self) -> RoundResult:
        """The result of the oldest round."""
        return self._flying.popleft()[1]

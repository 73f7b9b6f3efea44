"""Messages between the Router, on node 0, and the Model Backends of the other nodes: one connection a rank.

rank   --RankHello-->       Router     who it is, and what it would run; again to a Router that has taken another one's place
Router --StartRank-->   rank       or Refusal, which ends both launches
rank   --RankReady-->   Router     or RankFailed
Router --Round, Resync--> rank     as to the ranks of node 0
Router --Goodbye-->     rank       the server stops
"""

from __future__ import annotations

import msgspec

from lightllm.protocol.control import Attach, ModelReady
from lightllm.protocol.rounds import Resync, Round


class RankHello(msgspec.Struct, array_like=True, frozen=True, tag="hello"):
    rank: int
    node_rank: int
    host: str
    """Name of the machine, for messages."""
    version: str
    """lightllm's."""
    nnodes: int
    tp: int
    model: str
    """`weights.fingerprint.model_fingerprint` of its model folder."""
    server: str = ""
    """The launch for which it has loaded the model: `Attach.server`; "": it has not."""


class StartRank(msgspec.Struct, array_like=True, frozen=True, tag="start"):
    attach: Attach


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag="refusal"):
    reason: str


class Goodbye(msgspec.Struct, array_like=True, frozen=True, tag="goodbye"):
    pass


ToRank = StartRank | Refusal | Goodbye | Round | Resync


class RankReady(msgspec.Struct, array_like=True, frozen=True, tag="ready"):
    ready: ModelReady
    epoch: int
    """Of the `Attach` that this answers."""


class RankFailed(msgspec.Struct, array_like=True, frozen=True, tag="failed"):
    reason: str


FromRank = RankHello | RankReady | RankFailed

"""Messages between the Router, on node 0, and the other nodes: one connection a Model Backend rank, and one a launch.

rank   --RankHello-->       Router     who it is, and what it would run; again to a Router that has taken another one's place
Router --StartRank-->   rank       or Refusal, which ends its launch
rank   --RankReady-->   Router     or RankFailed
Router --Round, Resync--> rank     as to the ranks of node 0
launch --NodeHello-->       Router     again to each Router, too
Router --EndRanks-->    launch     which starts its ranks again
launch --NodeFailed-->  Router     it has given up
Router --Goodbye-->     launch     the server stops, or has failed
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
    rank_set: str = ""
    """The set of ranks that it was started for: `Attach.rank_set`; "": none yet."""
    pid: int = 0
    """As its launch knows it."""


class StartRank(msgspec.Struct, array_like=True, frozen=True, tag="start"):
    attach: Attach


class Refusal(msgspec.Struct, array_like=True, frozen=True, tag="refusal"):
    reason: str


ToRank = StartRank | Refusal | Round | Resync


class RankReady(msgspec.Struct, array_like=True, frozen=True, tag="ready"):
    ready: ModelReady
    epoch: int
    """Of the `Attach` that this answers."""


class RankFailed(msgspec.Struct, array_like=True, frozen=True, tag="failed"):
    reason: str


class NodeHello(msgspec.Struct, array_like=True, frozen=True, tag="node"):
    node_rank: int
    host: str


class EndRanks(msgspec.Struct, array_like=True, frozen=True, tag="end"):
    """The ranks that run in these processes are of no use any more. Those that have ended already are no longer meant: nothing
    happens then."""

    pids: list[int]
    reason: str


class Goodbye(msgspec.Struct, array_like=True, frozen=True, tag="goodbye"):
    reason: str = ""
    """Why the server has failed; "": it was told to stop."""


ToNode = EndRanks | Goodbye


class NodeFailed(msgspec.Struct, array_like=True, frozen=True, tag="node_failed"):
    reason: str


FromNodes = RankHello | RankReady | RankFailed | NodeHello | NodeFailed

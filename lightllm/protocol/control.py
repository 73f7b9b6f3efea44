"""Control messages: rpyc calls to a Model Backend, and what children tell the Supervisor."""

from __future__ import annotations

from typing import Literal

import msgspec


class Attach(msgspec.Struct, frozen=True):
    """rpyc `attach`: the Router of this epoch gives the rounds from now on. The first one has the model loaded and KV memory
    reserved; for a later one all rows become free. The answer is a `ModelReady`."""

    epoch: int
    rank: int
    config_json: bytes
    """The resolved `ServerConfig` as JSON."""
    rank_set: str = ""
    """To ranks of other nodes: the set of ranks that meet each other, a name of node 0's launch and a number."""


class ModelReady(msgspec.Struct, frozen=True):
    max_total_token_num: int
    """KV slots."""
    vocab_size: int
    dtype: str
    device: str
    seconds: dict[str, float] = {}
    """Where the time went: import, weights, packing, kv memory, warm-up."""
    weights: str = ""
    """Of weights in few bits: what they are kept as, for people."""
    decode_tokens: int = 1
    """Most tokens that a decode row brings in one round."""


class StartProfile(msgspec.Struct, frozen=True):
    """rpyc `start_profile`: record the next rounds. `stop_profile`, without arguments, ends that and wants the trace."""

    rounds: int


class ProfileAnswer(msgspec.Struct, frozen=True):
    """Answer to the rpyc calls `start_profile` and `stop_profile` of a Model Backend."""

    trace: str = ""
    """File of the trace, from `stop_profile`."""
    error: str = ""
    """Not empty: why nothing was done."""


class Status(msgspec.Struct, frozen=True):
    """A child process -> Supervisor, one JSON line over its channel."""

    process: str
    """e.g. "router", "backend-0", "http-0", "detokenizer"."""
    state: Literal["starting", "loading", "ready", "failed", "stopped"]
    detail: str = ""
    """What happens now; for "failed" the reason."""
    remedy: str = ""
    seconds: dict[str, float] = {}
    """Phases of the start with their wall time, with "ready"."""
    final: bool = False
    """With "failed": it is of no use to start the process again."""
    broken_set: int | None = None
    """Of the Router: this set of ranks has lost one on another node, for the reason in `detail`. All are to be started
    again."""


class Command(msgspec.Struct, frozen=True):
    """Supervisor -> child, one JSON line. drain: accept nothing new, finish what runs. stop: end now, tidily. attach (to the
    Router): the Model Backends or the Detokenizer are others now, begin a new epoch with them. reload (to Http Servers): read
    the files of keys and certificates anew."""

    action: Literal["drain", "stop", "attach", "reload"]
    reason: str = ""
    """With "stop": why the server has failed, for other nodes."""
    lost: bool = False
    """With "stop": nobody has said so, the Supervisor is gone."""

"""What a Model Backend does because it is one rank of several: meets the others, agrees with them, survives their failures."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec
import torch

from lightllm.config import ServerConfig
from lightllm.distributed.collectives import PeerLost
from lightllm.distributed.rendezvous import Rendezvous
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidOption, StartupError
from lightllm.protocol import codec
from lightllm.protocol.rounds import Round, RoundResult

logger = logging.getLogger(__name__)


def make_rendezvous(
    config: ServerConfig, rank: int, file: Path, name: str, superseded: Callable[[], bool]
) -> Rendezvous:
    """Where the ranks of this server find each other; `file` is private to them. name: of their set; superseded: whether another
    Router asks for this rank."""
    alone = config.nnodes == 1
    return Rendezvous(
        rank=rank,
        world_size=config.tp,
        join_timeout=config.startup_timeout if alone else config.nodes_timeout,
        operation_timeout=config.round_timeout,
        file=str(file) if alone else "",
        host="" if alone else config.nccl_host,
        port=config.nccl_port,
        name=name,
        superseded=superseded,
    )


class _Failure(msgspec.Struct):
    """Why a rank left the group, for the others."""

    seq: int
    reason: str
    out_of_memory: bool


class Ranks:
    """This rank among the others. With one rank every method does nothing."""

    def __init__(
        self, config: ServerConfig, rank: int, world_size: int, rendezvous: Rendezvous | None
    ) -> None:
        if (world_size > 1 or config.nnodes > 1) and rendezvous is None:
            raise InvalidOption("Several ranks need a rendezvous.", "Give `rendezvous`.")
        self.rank = rank
        self.world_size = world_size
        self.group = TpGroup()
        self._rendezvous = rendezvous
        self._check = config.check_rounds
        self._rounds = 0
        """How many this rank has taken on."""
        self._startup_timeout = config.startup_timeout

    def join(self, device: torch.device) -> None:
        """Meets the other ranks. Raises `StartupError` that names the missing ones."""
        if self._rendezvous is None or self.world_size == 1:
            return
        try:
            self.group = TpGroup.join(self._rendezvous, device)
        except PeerLost as error:
            raise StartupError(f"{error}.", "See its log lines.") from error

    def wait_until_loaded(self) -> None:
        """Ranks load at their own pace; from here on they wait for each other in every operation."""
        try:
            self.group.wait_for_all("loaded", self._startup_timeout)
        except PeerLost as error:
            raise StartupError(f"{error}.", "See its log lines.") from error

    def begin(self, round: Round, last_token: torch.Tensor) -> None:
        """This rank computes a round. With --check_rounds: raises unless every rank has got the same one and holds the same tokens."""
        self._rounds += 1
        if not self._check or self.world_size == 1:
            return
        tokens = zlib.crc32(last_token.cpu().numpy().tobytes())
        sums = self.group.gather_numbers(zlib.crc32(codec.encode(round)), tokens)
        different = [rank for rank, theirs in enumerate(sums) if theirs != sums[0]]
        if different:
            raise RuntimeError(
                f"round {round.seq}: ranks {different} were given other rounds or hold other tokens than rank 0"
            )

    def check_same(self, rows: Collection[int]) -> None:
        """Raises unless every rank has the same rows: those whose images it could not read. A rank that computes with other
        inputs than the others would spoil the rows of all."""
        if self.world_size > 1:
            mine = zlib.crc32(repr(sorted(rows)).encode())
            if any(theirs != [mine] for theirs in self.group.gather_numbers(mine)):
                raise RuntimeError("some ranks have read embeddings of images that others could not")

    def fail_round(self, error: Exception, failed: RoundResult) -> RoundResult:
        """A round has failed here: lets go of the other ranks, which wait for this one. Returns the result with the
        reason of the rank that failed first. Raises `StartupError` if that one failed in another round: what it
        computed since is lost, and nothing can be planned anew; and on GPUs, whose ranks end together."""
        if self.world_size == 1:
            return failed
        if not self.group.heals:
            raise StartupError(
                f"Tensor parallel rank {self.rank} failed in round {failed.seq}: {failed.failed}.",
                "Ranks on GPUs are started anew together.",
            ) from error
        if not isinstance(error, PeerLost):
            reason = f"rank {self.rank}: {failed.failed}"
            failure = _Failure(failed.seq, reason, failed.out_of_memory)
            self.group.drop(msgspec.json.encode(failure).decode())
            return msgspec.structs.replace(failed, failed=reason)
        text = self.group.read_failure()
        self.group.drop()
        if text is None:
            return failed
        failure = msgspec.json.decode(text, type=_Failure)
        if failure.seq != failed.seq:
            raise StartupError(
                f"A tensor parallel rank failed in round {failure.seq} on its own: {failure.reason}."
            )
        return msgspec.structs.replace(failed, failed=failure.reason, out_of_memory=failure.out_of_memory)

    def settle(self, seq: int) -> None:
        """All ranks have loaded, maybe not all for the same Router's sake: one may have died amid asking them. They are joined for
        the latest, whose first round is the highest `seq` of any rank."""
        if self.world_size > 1:
            self.group.generation = max(seq for (seq,) in self.group.gather_numbers(seq))

    def rejoin(self, seq: int, last_token: torch.Tensor) -> None:
        """After a failed round, and for another Router: all ranks join again for the round `seq`, and go on from rank 0's
        tokens. On GPUs, where no round has failed: they go on as they are if all have computed as many rounds. Raises
        `StartupError` that names a rank that does not come back: it is dead or hangs, and no round can be computed
        without it; `Superseded`: no rank has joined."""
        if self.world_size == 1 or (self.group.joined and self.group.generation == seq):
            return
        try:
            if self.group.heals:
                self.group.reconnect(seq)
            else:
                self.group.go_on(seq, self._rounds)
            self.group.broadcast(last_token)
        except PeerLost as error:
            raise StartupError(f"{error}, and no round can be computed without it.") from error

"""Where the ranks of a group find each other, and learn why one of them left.

Ranks of one machine meet in a file of the server's private folder: no port. Ranks of several machines meet at a
`TCPStore` of rank 0, on the address and port that were given for it; it knows no authentication.
"""

from __future__ import annotations

import dataclasses
import datetime
import socket
import time
from collections.abc import Callable

import torch.distributed as dist

from lightllm.distributed.collectives import PeerLost, Superseded
from lightllm.errors import InvalidOption

_POLL_SECONDS = 0.02
_MET, _OFF = "met", "off"


def _never() -> bool:
    return False


@dataclasses.dataclass(frozen=True)
class Rendezvous:
    """One of `file` (one machine) and `host` (several)."""

    rank: int
    world_size: int
    join_timeout: float
    """Seconds that ranks wait for each other when they meet first."""
    operation_timeout: float
    """Seconds that a rank waits for the others in one operation, and when they meet again."""
    file: str = ""
    host: str = ""
    """Address of rank 0's machine."""
    port: int = 0
    name: str = ""
    """Of these ranks: others that come to the same place do not meet them."""
    superseded: Callable[[], bool] = _never
    """Asked while this rank waits for the others to meet again: whether it is wanted elsewhere, so that they may wait for each
    other in vain."""

    @property
    def address(self) -> str:
        """This machine's address, where the other ranks reach this one."""
        if not self.host:
            return "127.0.0.1"
        return socket.gethostbyname(self.host) if self.rank == 0 else _address_towards(self.host)


class RankStore:
    """One rank's view of the store that the ranks share."""

    def __init__(self, rendezvous: Rendezvous) -> None:
        """Raises `InvalidOption` when the port is taken, `PeerLost` when rank 0 cannot be reached."""
        self.rendezvous = rendezvous
        place = dist.FileStore(rendezvous.file) if rendezvous.file else _tcp_store(rendezvous)
        self._store = dist.PrefixStore(rendezvous.name, place)

    def arrive(self, generation: int) -> dist.Store:
        """Waits until every rank has come for this generation and returns its store; `PeerLost` names the missing. All ranks
        meet, or for all the meeting is off (`Superseded`)."""
        rendezvous, name = self.rendezvous, f"generation-{generation}"
        store = dist.PrefixStore(name, self._store)
        try:
            if generation == 0:
                self.wait_for_all(name, rendezvous.join_timeout)
            else:
                self.wait_for_all(name, rendezvous.operation_timeout, rendezvous.superseded)
                if self._decide(name, _MET) == _OFF:
                    raise Superseded
        except RuntimeError as error:
            if isinstance(error, PeerLost):
                raise
            raise PeerLost(
                f"tensor parallel rank 0 at {rendezvous.host} cannot be reached: {error}"
            ) from error
        return store

    def wait_for_all(self, what: str, timeout: float, superseded: Callable[[], bool] = _never) -> None:
        """Every rank calls it; returns when all have. `PeerLost` names those that have not within `timeout` seconds;
        `Superseded`: as it says."""
        self._store.set(_key(what, self.rendezvous.rank), "1")
        deadline = time.monotonic() + timeout
        missing = [rank for rank in range(self.rendezvous.world_size) if rank != self.rendezvous.rank]
        while missing:
            missing = [rank for rank in missing if not self._store.check([_key(what, rank)])]
            if missing and superseded() and self._decide(what, _OFF) == _OFF:
                raise Superseded
            if missing and time.monotonic() >= deadline:
                raise PeerLost(f"{name_ranks(missing)} did not answer within {timeout:.0f} s")
            if missing:
                time.sleep(_POLL_SECONDS)

    def gather(self, what: str, value: str) -> list[str]:
        """What every rank has said of `what`, in their order; all of them have arrived for it. `PeerLost`: one is gone since."""
        self._store.set(f"{what}/{self.rendezvous.rank}", value)
        keys = [f"{what}/{rank}" for rank in range(self.rendezvous.world_size)]
        try:
            self._store.wait(keys, datetime.timedelta(seconds=self.rendezvous.operation_timeout))
            return [self._store.get(key).decode() for key in keys]
        except RuntimeError as error:
            raise PeerLost(f"a tensor parallel rank said nothing of {what}") from error

    def _decide(self, what: str, verdict: str) -> str:
        """The verdict of the rank that was first to give one."""
        return self._store.compare_set(f"{what}/verdict", "", verdict).decode()

    def post_failure(self, generation: int, text: str) -> None:
        """Tells the others why this rank leaves; the first failure that is posted counts."""
        self._store.compare_set(f"failure-{generation}", "", text)

    def read_failure(self, generation: int, timeout: float) -> str | None:
        """Why a rank left this generation, if it says so within `timeout` seconds."""
        key = f"failure-{generation}"
        try:
            self._store.wait([key], datetime.timedelta(seconds=timeout))
            return self._store.get(key).decode()
        except RuntimeError:  # DistStoreError: nothing was said; or rank 0 is gone with the store
            return None


def name_ranks(ranks: list[int]) -> str:
    """ "tensor parallel rank 1" or "tensor parallel ranks 1, 2"."""
    return f"tensor parallel rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _key(what: str, rank: int) -> str:
    return f"{what}/here-{rank}"


def _tcp_store(rendezvous: Rendezvous) -> dist.Store:
    timeout = datetime.timedelta(seconds=rendezvous.join_timeout)
    if rendezvous.rank:
        try:
            return dist.TCPStore(rendezvous.host, rendezvous.port, timeout=timeout)
        except RuntimeError as error:
            raise PeerLost(
                f"tensor parallel rank 0 at {rendezvous.host}:{rendezvous.port} cannot be reached: {str(error).partition(chr(10))[0]}"
            ) from error
    # torch would listen on every address of this machine.
    family, kind, _, _, address = socket.getaddrinfo(
        rendezvous.host, rendezvous.port, type=socket.SOCK_STREAM
    )[0]
    listener = socket.socket(family, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise InvalidOption(
            f"--nccl_host {rendezvous.host} --nccl_port {rendezvous.port} cannot be used: {error.strerror}.",
            "Give an address of node 0 and a free port.",
        ) from error
    return dist.TCPStore(
        rendezvous.host, rendezvous.port, is_master=True, timeout=timeout, wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )  # fmt: skip


def _address_towards(host: str) -> str:
    """The address that packets to `host` leave from; nothing is sent."""
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])

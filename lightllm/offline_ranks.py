"""The ranks of an offline `LLM` with `tp` above 1: processes of their own, which all get the same rounds; rank 0 answers.

Each has one socket pair with the process of the `LLM`. Over it go the config, then back `RankReady` or `RankFailed`, then
rounds, and from rank 0 their results. End of file means that the other side is gone: a rank then ends, and the `LLM` says so.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection, wait
from pathlib import Path

from lightllm.config import ServerConfig
from lightllm.errors import BackendFailed, StartupError
from lightllm.protocol import codec
from lightllm.protocol.control import ModelReady
from lightllm.protocol.nodes import RankFailed, RankReady
from lightllm.protocol.rounds import Resync, Round, RoundResult
from lightllm.server.environment import backend_environment

_END_SECONDS = 2.0
"""What a rank gets to end on its own."""
_POLL_SECONDS = 0.0005
_RESYNCED = b""
"""From rank 0: results before this one are of rounds that were undone."""


class OfflineRanks:
    """To the engine what a `RoundRunner` is with one rank: takes on rounds and gives their results, in order."""

    def __init__(self, config: ServerConfig, show_bar: bool) -> None:
        """Starts the processes, which load the model. Raises `StartupError`."""
        self._folder = tempfile.TemporaryDirectory(prefix="lightllm-ranks-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._links: list[Connection] = []
        self._undone = 0
        """Resyncs that rank 0 has not come to yet."""
        environment = os.environ | backend_environment(config)
        try:
            for rank in range(config.tp):
                self._start(rank, environment, show_bar and rank == 0)
                self._links[rank].send_bytes(config.to_json())
            self.ready = self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def submit(self, message: Round | Resync) -> None:
        if isinstance(message, Resync):
            self._undone += 1
        data = codec.encode(message)
        for rank, link in enumerate(self._links):
            try:
                link.send_bytes(data)
            except OSError as error:
                raise self._lost(rank) from error

    def take(self) -> RoundResult:
        """Waits for the next result. Raises `BackendFailed` when a rank has ended."""
        while True:
            for link in wait(self._links):
                data = self._receive(self._links.index(link))  # type: ignore[arg-type]
                if data == _RESYNCED:
                    self._undone -= 1
                elif not self._undone:
                    return codec.from_backend.decode(data)

    def close(self) -> None:
        """Ends the processes."""
        for link in self._links:
            link.close()
        for process in self._processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()

    def _start(self, rank: int, environment: dict[str, str], show_bar: bool) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = [str(rank), str(theirs.fileno()), self._folder.name, str(int(show_bar))]
            # A group of its own: Ctrl-C interrupts the `LLM`, which undoes the round, and not its ranks.
            process = subprocess.Popen(
                [sys.executable, "-m", "lightllm.offline_ranks", *arguments],
                env=environment,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        self._processes.append(process)
        self._links.append(Connection(ours.detach()))

    def _wait_until_ready(self) -> ModelReady:
        answers: dict[int, ModelReady] = {}
        while len(answers) < len(self._links):
            for link in wait([link for rank, link in enumerate(self._links) if rank not in answers]):
                rank = self._links.index(link)  # type: ignore[arg-type]
                try:
                    message = codec.from_rank.decode(self._receive(rank))
                except BackendFailed as error:
                    raise StartupError(str(error)) from error
                if isinstance(message, RankFailed):
                    raise StartupError(message.reason)
                answers[rank] = message.ready
        return answers[0]

    def _receive(self, rank: int) -> bytes:
        try:
            return self._links[rank].recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lost(rank) from error

    def _lost(self, rank: int) -> BackendFailed:
        return BackendFailed(f"tensor parallel rank {rank} has ended; what it wrote says why")


def run_rank(rank: int, link: Connection, folder: Path, show_bar: bool) -> None:
    """The main of a rank: until the process of the `LLM` closes its end."""
    from lightllm.backend.mode_backend import ModeBackend
    from lightllm.backend.process import RoundRunner
    from lightllm.backend.ranks import make_rendezvous

    config = ServerConfig.from_json(link.recv_bytes())
    backend = ModeBackend(config, rank, config.tp, rendezvous=make_rendezvous(config, rank, folder))
    try:
        ready = backend.init_model(show_bar)
    except StartupError as error:
        link.send_bytes(codec.encode(RankFailed(str(error))))
        return
    link.send_bytes(codec.encode(RankReady(ready)))
    runner = RoundRunner(backend)
    while True:
        while (pending := runner.oldest) is not None:
            if pending.ready():
                result = runner.take()
                if rank == 0:
                    link.send_bytes(codec.encode(result))
            elif link.poll(_POLL_SECONDS):
                break
        message = codec.to_backend.decode(link.recv_bytes())
        runner.submit(message)
        if rank == 0 and isinstance(message, Resync):
            link.send_bytes(_RESYNCED)


def main() -> None:
    rank, descriptor, folder, show_bar = sys.argv[1:]
    try:
        run_rank(int(rank), Connection(int(descriptor)), Path(folder), show_bar == "1")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the `LLM` is closed, or its process is gone


if __name__ == "__main__":
    main()

"""The Supervisor: starts all processes, waits until they are ready, watches them, stops them, cleans up.

One thread, one selector over signals, the children's channels and their stderr. (`PR_SET_PDEATHSIG` of a child is tied
to the thread that started it, so everything happens in the main thread.) Never imports torch.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable

from lightllm.config import ServerConfig
from lightllm.errors import LightLLMError, StartupError
from lightllm.ipc.openmp_files import remove_stale_openmp_registrations
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import SnapshotReader
from lightllm.ipc.stalls import Stall, StallWatch
from lightllm.protocol.control import Command
from lightllm.server.child_process import ChildProcess, find_cause
from lightllm.server.drain import Drain
from lightllm.server.kept_files import KeptFiles
from lightllm.server.log_output import LogOutput
from lightllm.server.node_watch import NodeWatch
from lightllm.server.plan import ChildSpec
from lightllm.server.process_group import SETTLE_SECONDS, WINDOW_SECONDS, GroupLost, ProcessGroup
from lightllm.server.process_list import ProcessList
from lightllm.server.signals import STOPS, SignalPipe
from lightllm.server.start_table import PhaseClock, Phases, child_phases

log = logging.getLogger("supervisor")

_STOP = Command(action="stop")
STOP_SECONDS = 3.0
"""A child must end within 2 s of `stop`; after this it is killed."""
START_STOP_SECONDS = 1.5
"""The same for a child that is still loading: it has nothing to put in order, but may be in the middle of an import."""
GOODBYE_SECONDS = 1.0
"""What the Router of several nodes has after a second SIGINT."""
INTERRUPT_GRACE = 5.0
"""Seconds that running requests get after the first SIGINT (SIGTERM: `--drain_timeout`)."""
_WATCH_SECONDS = 1.0
"""Longest wait between two looks at the beats of all processes, and between two of the Supervisor's own."""
_STACKS_SECONDS = 0.5
"""How long a process that hangs may take to write the stacks of its threads to the log."""
_NEW_EPOCH = (("backend", "started"), ("detokenizer", "ready"))
"""What calls for a new epoch. Model Backends wait for a Router that attaches to them. To a Detokenizer nothing must be sent
before the connection to the one before it is known to be gone: it would be lost."""


class ProcessFailed(LightLLMError):
    """A child ended, or reported that it cannot go on."""

    def __init__(self, child: ChildProcess, restarts: int = 0) -> None:
        """restarts: of the child before, lately."""
        reported = child.failure is not None and child.failure.detail
        self.reason = str(reported) if reported else child.how_it_ended()
        if restarts:
            self.reason += f" (after {restarts} restarts within {WINDOW_SECONDS:.0f} s: --max_restarts)."
        self.remedy = child.failure.remedy if child.failure is not None else ""
        self.name = child.failure.process if child.failure is not None else child.name
        self.last_lines = [] if self.remedy or self.name != child.name else child.last_lines
        super().__init__(f"{self.name}: {self.reason} {self.remedy}".strip())


class Supervisor:
    """Owns the life of all child processes of one server. `run()` returns the exit code."""

    def __init__(
        self,
        config: ServerConfig,
        runtime: RuntimeDir,
        clock: PhaseClock,
        output: LogOutput,
        files: KeptFiles | None = None,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._clock = clock
        self._output = output
        self._selector = selectors.DefaultSelector()
        self._files = files
        self._reloads = files is not None and bool(files.descriptors)
        """SIGHUP has files read anew; without them it asks for the end, as when a terminal is closed."""
        self._signals = SignalPipe(self._reloads)
        self._groups: list[ProcessGroup] = []
        self._node_0 = NodeWatch(config, self._selector) if config.node_rank else None
        self._terminate = False
        """A signal that asks for the end has arrived."""
        self._interrupts = 0

    def run(self, specs: list[ChildSpec], on_ready: Callable[[dict[str, Phases]], None]) -> int:
        """Starts the children, calls back when all are ready, and returns after a requested stop, or when node 0 has
        stopped: 0, or 130 when a second SIGINT cut it short. Raises `ProcessFailed` when a child fails, `StartupError` when the start takes
        too long, `NodeLost` on another node when node 0 has failed or is gone. No child is left in any case."""
        with self._signals, self._selector:
            self._selector.register(self._signals, selectors.EVENT_READ, self._read_signals)
            try:
                self._start(specs)
                if self._wait_until_ready():
                    on_ready(self._start_table())
                    self._serve()
                self._stop()
            except ProcessFailed as failure:
                self._tell(failure)
                raise
            finally:
                self._kill_all()
                if self._node_0 is not None:
                    self._node_0.close()
        return 130 if self._interrupts > 1 else 0

    # -- phases of a server's life

    def _start(self, specs: list[ChildSpec]) -> None:
        remove_stale_openmp_registrations()
        self._list = ProcessList(self._runtime, specs)
        for _, group in itertools.groupby(specs, lambda spec: spec.group):
            members = list(group)
            limit = self._config.max_restarts if members[0].needed else math.inf
            self._groups.append(ProcessGroup(members, self._start_child, limit, self._config.startup_timeout))
        self._clock.end("starting processes")

    @property
    def _ranks(self) -> ProcessGroup:
        """The Model Backends of this node."""
        return next(group for group in self._groups if group.name == "backend")

    @property
    def _children(self) -> list[ChildProcess]:
        return [child for group in self._groups for child in group.children]

    def _start_child(self, spec: ChildSpec) -> ChildProcess:
        """What the process before it has shown of itself says nothing about this one."""
        (self._runtime.beats_dir / spec.name).unlink(missing_ok=True)
        child = ChildProcess(spec, str(self._runtime.path), self._selector, self._output.write_bytes)
        log.debug("%s: process %d", spec.name, child.pid)
        return child

    def _wait_until_ready(self) -> bool:
        """False: a signal asked for the end before."""
        deadline = time.monotonic() + self._config.startup_timeout
        while not all(child.ready for child in self._children):
            if self._terminate:
                log.info("stopping before the server was ready")
                return False
            if self._node_0_stopped():
                raise StartupError("Node 0 has stopped.")
            self._raise_failure()
            if self._node_0 is not None:
                self._ranks.supervise(time.monotonic())  # node 0 may want them started again
            if time.monotonic() >= deadline:
                raise self._too_slow()
            self._turn(min(_WATCH_SECONDS, deadline - time.monotonic()))
        self._clock.end("waiting for the processes")
        return True

    def _serve(self) -> None:
        try:
            self._watch()
            if not self._config.node_rank:
                self._drain()
        except ProcessFailed as failure:
            self._stop_some(self._http_servers())  # clients are told; they do not only lose their connections
            if self._node_0 is not None:
                self._node_0.say_failed(str(failure))
            raise

    def _tell(self, failure: ProcessFailed) -> None:
        """The other nodes: their launches end too."""
        if self._config.nnodes > 1:
            routers = [child for child in self._children if child.name == "router"]
            self._stop_some(routers, Command(action="stop", reason=str(failure)))

    def _watch(self) -> None:
        """Until a signal asks for the end. What ends is started again, or ends the server."""
        if self._node_0 is not None:
            self._node_0.expect_node_0()
        watch = StallWatch(self._runtime, self._config)
        while not self._terminate and not self._node_0_stopped():
            wait = self._supervise(self._groups)
            self._turn(min(wait, _WATCH_SECONDS))
            for stall in watch.check(time.monotonic()):
                if stall.seconds > self._config.round_timeout:
                    self._end_hung(stall)

    def _supervise(self, groups: Iterable[ProcessGroup]) -> float:
        """Starts again what has ended; seconds until the next one is due. Raises `ProcessFailed`."""
        self._raise_failure(restarting=True)
        now = time.monotonic()
        due = math.inf
        for group in groups:
            try:
                event = group.supervise(now)
            except GroupLost as lost:
                raise ProcessFailed(lost.cause, lost.restarts) from lost
            if (group.name, event) == ("backend", "ended"):
                self._runtime.ranks_file.unlink(missing_ok=True)
                self._runtime.begin_rank_set()
            if (group.name, event) in _NEW_EPOCH:
                self._begin_epoch()
            due = min(due, group.next_event)
        return max(0.0, due - now)

    def _end_hung(self, stall: Stall) -> None:
        """Its whole group ends, after the log has what its threads are doing. A process that is being started again, and has
        not run yet, does not count."""
        for group in self._groups:
            if group.ready and any(child.name == stall.process for child in group.children):
                for child in group.children:
                    child.write_stacks()
                deadline = time.monotonic() + _STACKS_SECONDS
                while (remaining := deadline - time.monotonic()) > 0 and not self._terminate:
                    self._turn(remaining)
                group.fail(stall.process, f"made no progress for {stall.seconds:.0f} s (--round_timeout)")

    def _begin_epoch(self) -> None:
        for child in self._children:
            if child.name == "router" and child.running:
                child.send(Command(action="attach"))

    def _node_0_stopped(self) -> bool:
        """Its Router says so to every other node. Raises `NodeLost`."""
        return self._node_0 is not None and self._node_0.stopped

    def _drain(self) -> None:
        """Http Servers refuse new requests; the running ones get time to finish."""
        grace = INTERRUPT_GRACE if self._interrupts else self._config.drain_timeout
        drain = Drain(SnapshotReader(self._runtime.snapshot_file), time.monotonic(), grace)
        log.info("draining: %d running, %d waiting, at most %.0f s", *drain.load, grace)
        for child in self._http_servers():
            child.send(Command(action="drain"))
        while self._interrupts < 2 and not drain.finished(time.monotonic()):
            self._supervise(group for group in self._groups if not group.serves_http)
            self._turn(drain.poll_seconds)
            if self._interrupts:
                drain.shorten(time.monotonic(), INTERRUPT_GRACE)

    def _stop(self) -> None:
        """Http Servers first: what they still have to send comes from the others."""
        log.info("stopping")
        self._stop_some(self._http_servers())
        self._stop_some(self._children)

    # -- helpers

    def _stop_some(self, children: Iterable[ChildProcess], stop: Command = _STOP) -> None:
        children = [child for child in children if child.running]
        for child in children:
            if child.reported:
                child.send(stop)
            else:
                child.kill()  # its interpreter is just starting: there is nothing that it could put in order
        begin = time.monotonic()
        while self._interrupts < 2:
            deadlines = [begin + _stop_seconds(child) for child in children if child.running]
            now = time.monotonic()
            if not deadlines or max(deadlines) <= now:
                break
            self._turn(min(deadline for deadline in deadlines if deadline > now) - now)
            for child in children:
                if child.running and time.monotonic() >= begin + _stop_seconds(child):
                    self._kill(child)
        self._await_goodbye([child for child in children if child.name == "router"])
        for child in children:
            if child.running:
                self._kill(child)
            elif child.returncode != 0 and child.reported and not child.killed:
                log.warning("%s %s while stopping", child.name, child.how_it_ended())

    def _await_goodbye(self, routers: list[ChildProcess]) -> None:
        """Other nodes are told by the Router, whatever the hurry: else they would wait for another one."""
        deadline = time.monotonic() + GOODBYE_SECONDS
        while self._config.nnodes > 1 and any(child.running for child in routers):
            if (remaining := deadline - time.monotonic()) <= 0:
                break
            self._turn(remaining)

    def _kill(self, child: ChildProcess) -> None:
        late = f"did not end within {_stop_seconds(child):.0f} s"
        level = logging.DEBUG if child.starting else logging.WARNING
        log.log(level, "%s %s: killed", child.name, "is not awaited" if self._interrupts > 1 else late)
        child.kill()
        child.wait()

    def _turn(self, timeout: float) -> None:
        """Waits for events and handles them; notices deaths."""
        self._list.update(self._groups)
        for key, _ in self._selector.select(timeout):
            key.data()
        for child in self._children:
            child.reap()
        _reap_orphans({child.pid for child in self._children if child.running})
        for child in self._children:
            for status in child.take_statuses():
                detail = f" — {status.detail}" if status.detail else ""
                level = logging.DEBUG if status.state == "stopped" else logging.INFO
                log.log(level, "%s %s%s", child.name, status.state, detail)
                if status.broken_set == self._runtime.rank_set:
                    self._ranks.fail_for("another node", status.detail)
        for order in self._node_0.orders() if self._node_0 is not None else ():
            if any(child.running and child.pid in order.pids for child in self._ranks.children):
                self._ranks.end(order.reason, time.monotonic())

    def _read_signals(self) -> None:
        for number in self._signals.read():
            if number == signal.SIGINT:
                self._interrupts += 1
            reload = number == signal.SIGHUP and self._reloads
            stop = number in STOPS and not reload
            if number != signal.SIGCHLD:
                known = stop or reload
                log.info("received %s%s", number.name, "" if known else ", which means nothing here")
            if reload and self._files is not None:
                self._files.read_anew()
                for child in self._http_servers():
                    child.send(Command(action="reload"))
            self._terminate |= stop

    def _raise_failure(self, restarting: bool = False) -> None:
        """Raises `ProcessFailed` for the child that is the cause, if one has failed. restarting: those that are started again
        do not count."""

        def find() -> ChildProcess | None:
            groups = [group for group in self._groups if not group.waiting]
            children = [child for group in groups for child in group.children]
            return find_cause(c for c in children if not (restarting and self._restarts(c)))

        if find() is None:
            return
        deadline = time.monotonic() + SETTLE_SECONDS
        while (remaining := deadline - time.monotonic()) > 0 and self._interrupts < 2:
            self._turn(remaining)
        cause = find()
        assert cause is not None  # none that had failed goes on
        raise ProcessFailed(cause)

    def _restarts(self, child: ChildProcess) -> bool:
        return not child.spec.needed or self._config.max_restarts > 0

    def _too_slow(self) -> StartupError:
        late = [f"{c.name} ({c.status.detail or c.status.state})" for c in self._children if not c.ready]
        return StartupError(
            f"Not ready after {self._config.startup_timeout:.0f} s: {', '.join(late)}.",
            "Raise --startup_timeout if they only need more time.",
        )

    def _start_table(self) -> dict[str, Phases]:
        rows = {"supervisor": self._clock.phases}
        for child in self._children:
            rows[child.name] = child_phases(child.seconds_until, child.status.seconds)
        return rows

    def _http_servers(self) -> list[ChildProcess]:
        return [child for child in self._children if child.spec.serves_http]

    def _kill_all(self) -> None:
        for group in self._groups:
            group.kill()
        remove_stale_openmp_registrations()  # of processes that a killed child had started


def _stop_seconds(child: ChildProcess) -> float:
    return START_STOP_SECONDS if child.starting else STOP_SECONDS


def _reap_orphans(own: set[int]) -> None:
    """Takes the exit status of every process that has ended, but for those in `own`, so that none stays as a zombie:
    the first process of a container gets all that have lost their parents."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # there is none at all
            return
        if ended is None or ended.si_pid in own:  # its turn comes when it has been noticed
            return
        os.waitpid(ended.si_pid, os.WNOHANG)

"""Many servers on one virtual clock: the real schedulers behind the real dispatch policies, without a socket."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lightllm.cluster.ask import MAX_BLOCKS, Ask
from lightllm.cluster.dispatch.kv_aware import KvAware
from lightllm.cluster.dispatch.policies import make_policy
from lightllm.cluster.dispatcher import Dispatcher
from lightllm.cluster.registry import Registry
from lightllm.cluster.worker import Description, Ticket
from lightllm.protocol.kv_events import BLOCK_BYTES, BLOCK_TOKENS, ToldPrompt, chain_keys
from lightllm.router.memory.block_ledger import BlockLedger
from lightllm.router.scheduler_config import SchedulerConfig
from lightllm.simulate.backend import NEVER
from lightllm.simulate.coarse import CoarseServer
from lightllm.simulate.latency import LatencyModel
from lightllm.simulate.simulator import Simulation, Slo
from lightllm.simulate.trace import TraceRequest, words

MODEL = "m"


@dataclasses.dataclass(frozen=True)
class Incident:
    """What happens to one server."""

    time: float
    server: int
    slower: float = 0.0
    """Its rounds take so many times as long from now on; 0: it is gone, with all that it held."""


@dataclasses.dataclass
class FleetReport:
    """Times in seconds. Rates are of the time between the first arrival and the last one."""

    finished: int = 0
    refused: int = 0
    moved: int = 0
    """Requests that went on on another server."""
    duration: float = 0.0
    throughput_rps: float = 0.0
    output_tokens_per_s: float = 0.0
    ttft_p50: float = 0.0
    ttft_p99: float = 0.0
    hit_rate: float = 0.0
    """Prompt tokens that came from prefix caches."""
    hot_spot: float = 0.0
    """Requests of the busiest server, in mean shares."""
    left_over: int = 0
    """Load that the dispatcher still counts when all is over: 0."""


class _BlockKeys:
    """`blocks_of`, which remembers: prompts of one application begin alike."""

    def __init__(self, most: int = 1 << 16) -> None:
        self._known: dict[bytes, tuple[bytes, int]] = {}
        """The key before a block, and the block: its own key, in two forms."""
        self._most = most

    def of(self, data: bytes) -> tuple[int, ...]:
        known, keys, before = self._known, [], b""
        for start in range(0, min(len(data), MAX_BLOCKS * BLOCK_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
            piece = before + data[start : start + BLOCK_BYTES]
            found = known.get(piece)
            if found is None:
                (key,) = chain_keys(data[start : start + BLOCK_BYTES], before)
                if len(known) >= self._most:
                    known.clear()
                found = known[piece] = key.to_bytes(8), key
            before, key = found
            keys.append(key)
        return tuple(keys)


class _Server:
    """One scheduler with its device, and what of the fleet's requests it has."""

    def __init__(self, fleet: Fleet, number: int, latency: LatencyModel) -> None:
        self.number = number
        self.url = f"http://server-{number}"
        self.fleet = fleet
        self.ledger: BlockLedger | None = None
        """What its prefix cache has to tell, if the policy wants to know."""
        self.tickets: dict[int, tuple[Ticket, TraceRequest, float]] = {}
        """By place: the request, and when it reached the fleet."""
        self.simulation: Simulation | CoarseServer = (
            CoarseServer(fleet.config, latency, fleet.max_new_tokens, self)
            if fleet.coarse
            else Simulation(fleet.config, latency, Slo(), fleet.max_new_tokens, warm_up=0, watch=self)
        )
        self.version = 0
        self.gone = False

    def first(self, places: list[int], now: float) -> None:
        for place in places:
            ticket, _, since = self.tickets[place]
            ticket.answered()
            self.fleet.took(now - since)

    def ended(self, place: int, cached_tokens: int, now: float) -> None:
        ticket, request, _ = self.tickets.pop(place)
        ticket.close()
        self.fleet.ended(request, cached_tokens)


class Fleet:
    """One run. The same arguments give the same figures."""

    def __init__(
        self,
        servers: int,
        method: str,
        config: SchedulerConfig,
        latency: LatencyModel,
        max_new_tokens: int,
        seed: int = 0,
        progress: Callable[[int], object] | None = None,
        coarse: bool = False,
    ) -> None:
        """method: as `--dispatch_method`; coarse: servers pass over the rounds in which nothing changes (`coarse.py`)."""
        self.config = config
        self.coarse = coarse
        self.max_new_tokens = max_new_tokens
        self._latency = latency
        self._progress = progress
        self.now = 0.0
        self.registry = Registry()
        self._policy = make_policy(method, seed)
        self._keys = _BlockKeys()
        self._dispatcher = Dispatcher(self.registry, self._policy, lambda: self.now)
        self._servers = [_Server(self, number, latency) for number in range(servers)]
        self._by_url = {server.url: server for server in self._servers}
        for server in self._servers:
            description = Description(server.url, (MODEL,), kv_tokens=config.max_total_token_num)
            self.registry.register(description, 0.0)
            if isinstance(self._policy, KvAware):
                server.ledger = BlockLedger()
                server.simulation.watch_cache(server.ledger)
                self._tell(server)
        self._events: list[tuple[float, int, int]] = []
        """Heap of (end of a server's oldest round, server, version of that entry)."""
        self._ttft: list[float] = []
        self._finished = self._in_time = self._refused = self._moved = 0
        self._output_tokens = self._prompt_tokens = self._cached_tokens = 0
        self._last_arrival = 0.0
        self._arriving = True
        self._loads = {server.url: 0 for server in self._servers}

    def run(self, requests: Iterator[TraceRequest], incidents: Sequence[Incident] = ()) -> FleetReport:
        """To the end of the trace and of all requests."""
        happens = sorted(incidents, key=lambda incident: incident.time)
        coming = next(requests, None)
        while True:
            done = self._next_done()
            arrival = coming.arrival if coming is not None else NEVER
            incident = happens[0].time if happens else NEVER
            if min(done, arrival, incident) == NEVER:
                return self._report()
            if incident <= min(done, arrival):
                self.now = incident
                self._happen(happens.pop(0))
            elif arrival <= done:
                assert coming is not None
                self.now = self._last_arrival = arrival
                self._send(coming, arrival)
                coming = next(requests, None)
                self._arriving = coming is not None
            else:
                server = self._servers[heapq.heappop(self._events)[1]]
                self.now = done
                server.simulation.advance()
                self._tell(server)
                self._push(server)

    # -- what servers tell

    def took(self, seconds: float) -> None:
        """From a request's arrival to its first token."""
        self._ttft.append(seconds)

    def ended(self, request: TraceRequest, cached_tokens: int) -> None:
        self._finished += 1
        self._in_time += self._arriving
        self._output_tokens += request.output_len
        self._prompt_tokens += len(request.prompt_ids)
        self._cached_tokens += cached_tokens
        if self._progress is not None:
            self._progress(1)

    # -- what happens

    def _send(self, request: TraceRequest, since: float) -> None:
        prompt = request.prompt_ids
        whole = len(prompt) // BLOCK_TOKENS * BLOCK_TOKENS
        blocks = self._keys.of(np.ascontiguousarray(prompt[:whole]).tobytes())
        ask = Ask(MODEL, blocks, len(prompt), self.max_new_tokens, is_ids=True)
        ticket = self._dispatcher.send(ask)
        self._policy.learn(ticket.worker, ask, ToldPrompt(len(prompt), 1, [*ask.blocks]))
        server = self._by_url[ticket.worker.url]
        self._loads[server.url] += 1
        place = server.simulation.arrive(dataclasses.replace(request, arrival=self.now))
        if place is None:
            ticket.close()
            self._refused += 1
        else:
            server.tickets[place] = ticket, request, since
        self._tell(server)
        self._push(server)

    def _tell(self, server: _Server) -> None:
        """Its cache events, without delay."""
        if server.ledger is not None and server.ledger.has_news and isinstance(self._policy, KvAware):
            self._policy.hear(server.url, server.ledger.take())

    def _happen(self, incident: Incident) -> None:
        server = self._servers[incident.server]
        if incident.slower:
            slow = incident.slower
            latency = self._latency
            slower = dataclasses.replace(
                latency, floor=latency.floor * slow, per_token=latency.per_token * slow, per_held=latency.per_held * slow,
                fixed=latency.fixed * slow,
            )  # fmt: skip
            server.simulation.use_latency(slower, self.now)
            self._push(server)
            return
        server.gone = True
        server.version += 1
        self.registry.remove(server.url)
        server.simulation.now = self.now
        held, server.tickets = server.tickets, {}
        for place, (ticket, request, since) in held.items():
            ticket.close()
            made = server.simulation.outputs(place)
            prompt = np.concatenate([request.prompt_ids, words(made)]) if made else request.prompt_ids
            self._moved += 1
            self._send(
                TraceRequest(self.now, prompt, max(1, request.output_len - made)), self.now if made else since
            )

    def _push(self, server: _Server) -> None:
        server.version += 1
        done = server.simulation.next_done
        if done < NEVER:
            heapq.heappush(self._events, (done, server.number, server.version))

    def _next_done(self) -> float:
        """Entries that are no longer true are dropped."""
        events = self._events
        while events:
            done, number, version = events[0]
            server = self._servers[number]
            if version == server.version and not server.gone:
                return done
            heapq.heappop(events)
        return NEVER

    def _report(self) -> FleetReport:
        seconds = max(self._last_arrival, 1e-9)
        ttft = np.array(self._ttft or [0.0])
        loads = [*self._loads.values()]
        left = sum(worker.in_flight + worker.prefill_tokens + worker.held_tokens for worker in self.registry)
        return FleetReport(
            self._finished, self._refused, self._moved, self.now, self._in_time / seconds, self._output_tokens / self.now,
            float(np.quantile(ttft, 0.5)), float(np.quantile(ttft, 0.99)), self._cached_tokens / max(1, self._prompt_tokens),
            max(loads) * len(loads) / max(1, sum(loads)), left,
        )  # fmt: skip

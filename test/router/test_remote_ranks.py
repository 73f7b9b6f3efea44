"""The Router's view of ranks on other nodes, with real connections: which ones belong together, and what is told to whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from support.model_folder import make_model_folder
from support.two_nodes import free_port

from lightllm import __version__
from lightllm.config import ServerConfig
from lightllm.errors import NodeLost
from lightllm.ipc.channels import make_context
from lightllm.ipc.nodes import NodeConnection, NodeKeys, node_address, read_secret
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, ModelReady
from lightllm.protocol.nodes import (
    EndRanks,
    Goodbye,
    NodeFailed,
    NodeHello,
    RankFailed,
    RankHello,
    RankReady,
    Refusal,
    StartRank,
)
from lightllm.router.remote_ranks import RankLost, RemoteRanks
from lightllm.weights.fingerprint import model_fingerprint

READY = ModelReady(100, 10, "none", "mock")


class Place:
    """Node 0's runtime folder, and connections of other nodes."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("what the nodes of this test share")
        self.config = ServerConfig(
            model_dir=str(make_model_folder(tmp_path / "tiny")), tp=2, nnodes=2, nccl_port=free_port(),
            cluster_secret_file=str(tmp_path / "secret"), nodes_timeout=5.0,
        )  # fmt: skip
        self.runtime = RuntimeDir.create(tmp_path)
        self.context = make_context()
        self._model = model_fingerprint(str(self.config.model_dir))
        self._routers: list[RemoteRanks] = []

    def router(self) -> RemoteRanks:
        """Another Router, in the place of the one before."""
        self.lose_router()
        router = RemoteRanks(self.context, self.config, self.runtime, lambda: None)
        self.runtime.begin_epoch()
        router.begin()
        self._routers.append(router)
        return router

    def lose_router(self) -> None:
        for router in self._routers:
            router.close(stops=False)
        self._routers.clear()

    def connect(self, hello: RankHello | NodeHello) -> NodeConnection:
        keys = NodeKeys.derive(read_secret(self.config))
        connection = NodeConnection(self.context, node_address(self.config), keys)
        connection.send(codec.encode(hello))
        return connection

    def node(self) -> NodeConnection:
        return self.connect(NodeHello(1, "there"))

    def rank(self, pid: int, rank_set: str = "", tp: int = 2) -> NodeConnection:
        return self.connect(RankHello(1, 1, "there", __version__, 2, tp, self._model, rank_set, pid))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.lose_router()
    place.runtime.remove()
    place.context.destroy(linger=0)


def attach(rank: int) -> Attach:
    return Attach(1, rank, b"{}")


def received(
    connection: NodeConnection, router: RemoteRanks, decoder: codec.Decoder = codec.to_rank
) -> object:
    """The next message, while the Router goes on."""
    end = time.monotonic() + 10
    while (data := connection.receive()) is None:
        router.check()
        assert time.monotonic() < end, "nothing was said"
        time.sleep(0.01)
    return decoder.decode(data)


def until_lost(router: RemoteRanks) -> str:
    end = time.monotonic() + 10
    with pytest.raises(RankLost) as lost:
        while time.monotonic() < end:
            router.check()
            time.sleep(0.01)
    return str(lost.value)


def serve(router: RemoteRanks, rank: NodeConnection) -> str:
    """The whole start of one rank; the name of its set."""
    assert router.wait_for_all(threading.Event(), lambda _: None)
    router.start(attach)
    start = received(rank, router)
    assert isinstance(start, StartRank)
    rank.send(codec.encode(RankReady(READY, start.attach.epoch)))
    assert router.wait_until_ready(threading.Event()) == [READY]
    return start.attach.rank_set


def wait_in_thread(router: RemoteRanks, said: list[str]) -> tuple[threading.Thread, threading.Event]:
    stopping = threading.Event()
    thread = threading.Thread(target=router.wait_for_all, args=(stopping, said.append), daemon=True)
    thread.start()
    return thread, stopping


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_rank_that_is_lost_breaks_the_set_and_one_that_comes_afresh_is_of_the_next(place: Place) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    first = serve(router, rank)
    rank.close()
    assert until_lost(router) == "lost tensor parallel rank 1 (node 1, there)"
    router.break_set("lost")
    router.check()  # it is said once
    fresh = place.rank(pid=12)
    place.runtime.begin_rank_set()
    router.begin()
    second = serve(router, fresh)
    assert first != second
    order = received(node, router, codec.to_node)
    assert isinstance(order, EndRanks) and order.pids == [11]


def test_ranks_of_the_set_before_are_ended_when_those_of_node_0_are_others(place: Place) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    serve(router, rank)
    place.runtime.begin_rank_set()
    router.begin()
    assert received(node, router, codec.to_node) == EndRanks([11], "a rank of node 0 has ended")
    said: list[str] = []
    thread, stopping = wait_in_thread(router, said)
    wait_until(lambda: said)
    assert said == ["a rank of node 0 has ended: waiting for tensor parallel ranks 1"]
    stopping.set()
    thread.join(10)


def test_another_router_goes_on_with_the_ranks_of_the_present_set_alone(place: Place) -> None:
    rank = place.rank(pid=11)
    node = place.node()
    name = serve(place.router(), rank)
    rank.close()
    node.close()
    router, node = place.router(), place.node()
    old = place.rank(pid=10, rank_set="another server/0")
    assert received(node, router, codec.to_node) == EndRanks(
        [10], "it was started for ranks that are no more"
    )
    same = place.rank(pid=11, rank_set=name)
    assert serve(router, same) == name
    old.close()


def test_another_router_that_finds_a_fresh_rank_in_a_set_that_was_started_says_that_it_is_broken(
    place: Place,
) -> None:
    rank, node = place.rank(pid=11), place.node()
    serve(place.router(), rank)
    rank.close()
    router, fresh = place.router(), place.rank(pid=12)
    assert until_lost(router) == "tensor parallel rank 1 (node 1, there) was started again"
    fresh.close()
    node.close()


def test_a_rank_that_has_ended_and_come_again_before_anybody_has_looked_is_not_taken_for_itself(
    place: Place,
) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    name = serve(router, rank)
    rank.close()
    again = place.rank(pid=11, rank_set=name)
    assert "lost" in until_lost(router)
    again.close()
    node.close()


def test_a_rank_that_fails_says_why(place: Place) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    serve(router, rank)
    rank.send(codec.encode(RankFailed("out of everything")))
    assert until_lost(router) == "tensor parallel rank 1 (node 1, there) failed: out of everything"
    node.close()


def test_a_node_that_has_given_up_ends_the_server(place: Place) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    serve(router, rank)
    node.send(codec.encode(NodeFailed("backend-1 ended")))
    with pytest.raises(NodeLost, match=r"^node 1 \(there\) has given up: backend-1 ended"):
        received(rank, router)


def test_a_node_that_does_not_fit_ends_the_start_but_not_a_server_that_serves(place: Place) -> None:
    router, stranger = place.router(), place.rank(pid=20, tp=4)
    with pytest.raises(NodeLost, match="--tp 4"):
        received(stranger, router)
    stranger.close()
    node, rank = place.node(), place.rank(pid=11)
    serve(router, rank)
    stranger = place.rank(pid=20, tp=4)
    refusal = received(stranger, router)
    assert isinstance(refusal, Refusal) and "--tp 4" in refusal.reason
    router.check()
    node.close()


def test_a_node_that_is_lost_is_named_and_awaited(place: Place) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    serve(router, rank)
    node.close()
    rank.close()
    until_lost(router)
    place.runtime.begin_rank_set()
    router.begin()
    said: list[str] = []
    with pytest.raises(NodeLost, match=r"Within 5 s there came no tensor parallel ranks 1 \(nodes 1\)"):
        router.wait_for_all(threading.Event(), said.append)
    assert said[-1] == "lost node 1 (there): waiting until it is started again"


def test_goodbye_is_said_to_every_launch_with_the_reason(place: Place) -> None:
    router, node, rank = place.router(), place.node(), place.rank(pid=11)
    serve(router, rank)
    router.close(stops=True, reason="it was too much")
    place._routers.clear()
    wait_until(lambda: node.socket.poll(10, zmq.POLLIN))
    data = node.receive()
    assert data is not None and codec.to_node.decode(data) == Goodbye("it was too much")

"""Ranks of a server of two nodes die, on this node or that: all of them are started again, and every stream goes on, token for
token. So it does when a whole launch is lost and an operator starts it again."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from support.checkpoints import make_checkpoint
from support.model_folder import make_model_folder
from support.server import LightLLMServer
from support.two_nodes import JOINED, SECRET, TwoNodes, last_error, model_options
from support.watched_streams import WatchedStream, finish, start_streams, tokens_of, wait_until


@pytest.fixture
def mock(tmp_path: Path) -> list[str]:
    folder = make_model_folder(tmp_path / "tiny")
    return [
        "--model_dir", str(folder), "--mock_backend", "step_ms=10", "--nodes_timeout", "60",
        "--max_req_total_len", "3500",
    ]  # fmt: skip


def requests(model: str, tokens: int) -> list[tuple[str, dict[str, Any]]]:
    native = {"max_new_tokens": tokens, "ignore_eos": True, "return_details": True}
    openai = {"model": model, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    return [
        ("/generate_stream", {"inputs": "greedy", "parameters": native | {"do_sample": False, "seed": 6}}),
        ("/generate_stream", {"inputs": "hello " * 20, "parameters": native | {"seed": 7}}),
        ("/v1/completions", openai | {"prompt": "two", "n": 2, "seed": 8, "temperature": 0.7}),
    ]  # fmt: skip


class Streams:
    """The same requests undisturbed, and again while something is done to the server."""

    def __init__(self, url: str, model: str = "tiny", tokens: int = 300) -> None:
        wanted = requests(model, tokens)
        self._undisturbed = start_streams(url, wanted)
        finish(self._undisturbed)
        assert not any(stream.error for stream in self._undisturbed)
        self.now = start_streams(url, wanted)

    def go_on(self) -> None:
        go_on(self.now)

    def check(self) -> None:
        finish(self.now)
        assert [one.differs(other) for one, other in zip(self.now, self._undisturbed, strict=True)] == [
            ""
        ] * 3


def go_on(streams: list[WatchedStream]) -> None:
    """Until some tokens have come from now on."""
    before = tokens_of(streams)
    wait_until(lambda: tokens_of(streams) > before + 30, "the streams do not go on")


def ranks_of(nodes: TwoNodes) -> tuple[psutil.Process, psutil.Process]:
    return nodes.node_0.child("backend-0"), nodes.node_1.child("backend-1")


def stop(nodes: TwoNodes) -> None:
    assert nodes.node_0.stop() == 0
    assert nodes.node_1.wait() == 0
    nodes.node_1.check_nothing_left()


def test_streams_go_on_after_the_death_of_a_rank_of_each_node(mock: list[str]) -> None:
    with TwoNodes(mock) as nodes:
        streams = Streams(nodes.wait_ready(), tokens=200)
        for victim in (1, 0):
            streams.go_on()
            before = ranks_of(nodes)
            before[victim].kill()
            nodes.node_0.wait_for(rf"(?s)(backend: ready again.*){{{2 - victim}}}", 30)
            assert not any(rank.is_running() for rank in before)
        streams.check()
        assert "lost tensor parallel rank 1 (node 1, " in nodes.node_0.log
        assert "a rank of node 0 has ended, and so it is started again" in nodes.node_1.log
        stop(nodes)


@pytest.mark.slow
def test_a_real_model_gives_the_same_tokens_after_deaths_on_each_node(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", num_key_value_heads=1)
    with TwoNodes([*model_options(path), "--max_restarts", "9"]) as nodes:
        streams = Streams(nodes.wait_ready(), "model", tokens=600)
        for number, victim in enumerate((1, 0), 1):
            streams.go_on()
            ranks_of(nodes)[victim].kill()
            nodes.node_0.wait_for(rf"(?s)(backend: ready again.*){{{number}}}", 90)
        streams.check()
        stop(nodes)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_streams_go_on_whatever_dies_together(mock: list[str], ranks: int) -> None:
    with TwoNodes([*mock, "--tp", str(ranks), "--max_restarts", "100"]) as nodes:
        nodes.node_1.wait_for(r"ready: node 1 of 2", 120)
        streams = Streams(nodes.node_0.wait_ready(), tokens=1500)
        last, first = f"backend-{ranks - 1}", f"backend-{ranks // 2}"
        for victims in (
            [(0, "router"), (1, last)],
            [(0, "backend-0"), (1, last)],
            [(0, "router"), (0, "backend-0")],
            [(0, "router"), (0, "backend-0"), (1, first)],
            [(0, "detokenizer"), (1, first)],
            [(0, "detokenizer"), (0, "backend-0")],
        ):
            streams.go_on()
            found = [(nodes.node_0, nodes.node_1)[node].child(name) for node, name in victims]
            for process in found:
                process.suspend()
            for process in found:
                process.kill()
        streams.check()
        stop(nodes)


@pytest.mark.slow
def test_a_rank_of_another_node_that_hangs_is_started_again(mock: list[str]) -> None:
    with TwoNodes([*mock, "--round_timeout", "8"]) as nodes:
        streams = Streams(nodes.wait_ready())
        streams.go_on()
        nodes.node_1.child("backend-1").send_signal(signal.SIGSTOP)
        nodes.node_1.wait_for("backend-1 failed: made no progress for", 30)
        streams.check()
        stop(nodes)


def names(nodes: TwoNodes, what: str) -> bool:
    """Whether the server is not ready, and says so of what it waits for."""
    answers = [httpx.get(nodes.node_0.url + path, timeout=30) for path in ("/readiness", "/health")]
    return all(answer.status_code == 503 and what in answer.json()["reason"] for answer in answers)


@pytest.mark.slow
def test_a_launch_that_is_lost_is_named_and_goes_on_when_it_is_started_again(mock: list[str]) -> None:
    with TwoNodes([*mock, "--max_restarts", "2"]) as nodes:
        streams = Streams(nodes.wait_ready())
        for _ in range(2):
            streams.go_on()
            nodes.node_1.process.kill()
            nodes.node_1.wait()
            wait_until(lambda: names(nodes, "lost node 1 ("), "readiness does not name the node", 20)
            nodes.node_1.abandon()
            nodes.node_1 = LightLLMServer([*nodes.common, "--node_rank", "1"], environment=SECRET)
            nodes.node_1.wait_for(JOINED, 60)
        streams.check()
        stop(nodes)


@pytest.mark.slow
def test_a_second_interrupt_amid_a_restart_ends_both_nodes_at_once(mock: list[str]) -> None:
    with TwoNodes(mock) as nodes:
        streams = start_streams(nodes.wait_ready(), requests("tiny", 3000))
        go_on(streams)
        nodes.node_0.child("backend-0").kill()
        nodes.node_0.wait_for("backend-0 was killed by SIGKILL: it is started again")
        for count in (1, 2):
            nodes.node_0.send(signal.SIGINT)
            nodes.node_0.wait_for(rf"(?s)(received SIGINT.*){{{count}}}")
        assert nodes.node_0.wait(10) == 130
        assert nodes.node_1.wait(10) == 0
        nodes.node_0.check_nothing_left()
        nodes.node_1.check_nothing_left()


@pytest.mark.slow
def test_a_launch_that_is_lost_for_good_ends_the_server(mock: list[str]) -> None:
    with TwoNodes([*mock, "--nodes_timeout", "12"]) as nodes:
        nodes.wait_ready()
        nodes.node_1.process.kill()
        assert nodes.node_0.wait() == 1
        assert "Within 12 s there came no tensor parallel ranks 1 (nodes 1)." in last_error(nodes.node_0)
        nodes.node_0.check_nothing_left()


@pytest.mark.slow
def test_a_node_goes_on_with_another_launch_of_node_0(mock: list[str]) -> None:
    with TwoNodes(mock) as nodes:
        nodes.wait_ready()
        rank = nodes.node_1.child("backend-1")
        nodes.node_0.process.kill()
        nodes.node_0.wait()
        nodes.node_0.abandon()
        nodes.node_0 = LightLLMServer([*nodes.common, "--node_rank", "0"], environment=SECRET)
        streams = Streams(nodes.node_0.wait_ready())
        streams.check()
        assert not rank.is_running()
        stop(nodes)


@pytest.mark.slow
def test_a_node_whose_node_0_is_lost_for_good_ends(mock: list[str]) -> None:
    with TwoNodes([*mock, "--nodes_timeout", "12"]) as nodes:
        nodes.wait_ready()
        nodes.node_0.process.kill()
        assert nodes.node_1.wait() == 1
        assert "The connection to node 0 at tcp://127.0.0.1" in last_error(nodes.node_1)
        nodes.node_1.check_nothing_left()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victims", "messages"),
    [
        (
            "1",
            ("another node failed: lost tensor parallel rank 1 (node 1, ", "backend-1 failed: was killed by SIGKILL (after 2 restarts"),
        ),
        (
            "0",
            ("backend-0 failed: was killed by SIGKILL (after 2 restarts", "Node 0 has failed: backend-0: was killed by SIGKILL"),
        ),
        ("01", ("(after 2 restarts within 300 s: --max_restarts)", "Node 0 has failed: backend-0")),
    ],
)  # fmt: skip
def test_the_server_gives_up_on_each_node_with_one_line(
    mock: list[str], victims: str, messages: tuple[str, str]
) -> None:
    with TwoNodes([*mock, "--max_restarts", "2"]) as nodes:
        streams = start_streams(nodes.wait_ready(), requests("tiny", 3000))
        for number, victim in zip(range(3), itertools.cycle(map(int, victims)), strict=False):
            go_on(streams)
            ranks_of(nodes)[victim].kill()
            if number < 2:
                nodes.node_0.wait_for(rf"(?s)(backend: ready again.*){{{number + 1}}}", 30)
        for node, message in zip((nodes.node_0, nodes.node_1), messages, strict=True):
            assert node.wait() == 1
            assert message in last_error(node)
            node.check_nothing_left()
        finish(streams)
        assert all(stream.error for stream in streams)

"""One server on two nodes: two launches on this machine, over loopback or (slow, as root) between network namespaces."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.checkpoints import make_checkpoint
from support.model_folder import make_model_folder
from support.parallel_requests import Stream, answer, check_ended_with_an_error, expected_answers, requests
from support.server import SERVER_COMMAND, LightLLMServer
from support.two_nodes import JOINED, SECRET, TwoNodes, free_port, last_error, model_options
from support.watched_streams import finish, start_streams, tokens_of, wait_until


@pytest.fixture
def mock(tmp_path: Path) -> list[str]:
    folder = make_model_folder(tmp_path / "mock")
    return [
        "--model_dir",
        str(folder),
        "--mock_backend",
        "step_ms=20",
        "--nodes_timeout",
        "20",
        "--max_req_total_len",
        "3500",
    ]


def check_serves(nodes: TwoNodes, path: Path) -> None:
    nodes.wait_ready()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: answer(nodes.node_0, *request), requests()))
    assert answers == expected_answers(path)
    assert nodes.node_0.stop() == 0
    assert nodes.node_1.wait() == 0
    nodes.node_1.check_nothing_left()


def test_two_nodes_give_the_tokens_of_one_rank_and_end_together(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", num_key_value_heads=1)
    with TwoNodes(model_options(path), host="127.0.0.2") as nodes:
        check_serves(nodes, path)


@pytest.mark.slow
def test_a_wrong_secret_is_refused_and_both_launches_end(mock: list[str]) -> None:
    wrong = {"LIGHTLLM_CLUSTER_SECRET": "the nodes do not share this"}
    with TwoNodes(mock, node_1_secret=wrong) as nodes:
        assert nodes.node_1.wait() == 2
        assert "refused this node: its cluster secret differs" in last_error(nodes.node_1)
        assert "does not know the cluster secret" in nodes.node_0.log
        assert nodes.node_0.wait() == 2
        assert "there came no tensor parallel ranks 1 (nodes 1)" in last_error(nodes.node_0)
        assert "connections were refused" in last_error(nodes.node_0)


class Strangers(threading.Thread):
    """Somebody who knows no secret, and connects to a port again and again: leaves at once, or after some bytes."""

    GREETINGS = (
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 200,
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL",
        b"\0",
    )

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.came = 0
        self._port = port
        self._enough = threading.Event()
        self.start()

    def run(self) -> None:
        for greeting in itertools.cycle(self.GREETINGS):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), 1) as stranger,
            ):
                self.came += 1
                stranger.sendall(greeting)
            if self._enough.wait(0.05):
                return

    def stop(self) -> None:
        self._enough.set()
        self.join(10)


def test_strangers_at_the_port_of_the_nodes_disturb_neither_start_nor_traffic(mock: list[str]) -> None:
    port = free_port()
    strangers = Strangers(port + 1)
    with TwoNodes([*mock, "--nccl_port", str(port), "--drain_timeout", "0.5"]) as nodes:
        stream = Stream(nodes.wait_ready())
        stream.wait_for_tokens()
        came = strangers.came
        assert came > 0
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: answer(nodes.node_0, "hello", {}), range(4)))
        assert len(answers) == 4
        strangers.stop()
        assert strangers.came > came
        assert "error" not in stream.text and not stream.done.done()
        assert nodes.node_0.stop() == 0
        assert nodes.node_1.wait() == 0


def test_a_node_with_a_wrong_secret_does_not_end_the_launch_of_the_right_one(mock: list[str]) -> None:
    """The right one joins while the connection of the wrong one is just being ended."""
    wrong = {"LIGHTLLM_CLUSTER_SECRET": "the nodes do not share this"}
    with TwoNodes(mock, node_1_secret=wrong) as nodes:
        assert nodes.node_1.wait() == 2
        assert "refused this node: its cluster secret differs" in last_error(nodes.node_1)
        nodes.node_0.wait_for("does not know the cluster secret")
        options = [*nodes.common, "--node_rank", "1"]
        right = LightLLMServer(options, environment=SECRET)
        try:
            nodes.node_0.wait_ready()
            right.wait_for(JOINED)
            assert nodes.node_0.stop() == 0
            assert right.wait() == 0
        finally:
            right.abandon()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tp", "4"), "The nodes are unequal: node 1 ({host}) has --tp 4, node 0 has 2."),
        pytest.param(
            ("--model_dir", "OTHER"), "The nodes are unequal: the model folder of node 1 ({host}) differs",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_unequal_nodes_end_both_launches_with_one_line(
    mock: list[str], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    other = str(make_checkpoint(tmp_path / "other")) if "OTHER" in options else ""
    with TwoNodes(mock, node_1_options=tuple(other if o == "OTHER" else o for o in options)) as nodes:
        for node in (nodes.node_0, nodes.node_1):
            assert node.wait() == 2
            assert message.format(host=socket.gethostname()) in last_error(node)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tp", "3"], "--tp 3 ranks cannot be split evenly over --nnodes 2."),
        (["--node_rank", "2", "--tp", "2"], "--node_rank 2 is not below --nnodes 2."),
        (["--tp", "2", "--cluster_secret_file", "/nowhere"], "--cluster_secret_file /nowhere cannot be read"),
        (
            ["--tp", "2", "--nccl_host", "192.0.2.1"],
            "Node 0 cannot listen for the other nodes on tcp://192.0.2.1",
        ),
    ],
)
def test_a_wrong_option_of_nodes_ends_the_launch_with_one_line(
    mock: list[str], options: list[str], message: str
) -> None:
    server = LightLLMServer([*mock, "--nnodes", "2", *options], environment=SECRET)
    try:
        assert server.wait() == 2
        assert message in last_error(server)
    finally:
        server.abandon()


@pytest.mark.slow  # with restarts: test_node_restarts.py
def test_without_restarts_a_rank_of_another_node_that_dies_gives_clients_an_error(mock: list[str]) -> None:
    with TwoNodes([*mock, "--max_restarts", "0"]) as nodes:
        stream = Stream(nodes.wait_ready())
        stream.wait_for_tokens()
        nodes.node_1.child("backend-1").kill()
        check_ended_with_an_error(stream, 10)
        assert nodes.node_0.wait() == 1
        assert f"lost tensor parallel rank 1 (node 1, {socket.gethostname()})" in last_error(nodes.node_0)
        assert nodes.node_1.wait() == 1
        assert "backend-1 failed: was killed by SIGKILL" in last_error(nodes.node_1)
        nodes.node_0.check_nothing_left()
        nodes.node_1.check_nothing_left()


@pytest.mark.slow  # test_node_restarts.py has the short form
def test_streams_go_on_when_node_0_loses_its_router_or_its_detokenizer(mock: list[str]) -> None:
    check_restarts(mock, "tiny")


@pytest.mark.slow
def test_two_nodes_give_the_same_tokens_after_another_router_has_come(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "model", num_key_value_heads=1)
    check_restarts(model_options(path), "model", kills=4)


def check_restarts(options: list[str], model: str, kills: int = 2) -> None:
    wanted = [
        ("/generate_stream", {"inputs": "hello " * 20, "parameters": {"max_new_tokens": 500, "ignore_eos": True, "return_details": True, "seed": 7}}),
        ("/v1/completions", {"model": model, "prompt": "two", "n": 2, "max_tokens": 500, "ignore_eos": True, "stream": True, "seed": 8, "temperature": 0.7}),
    ]  # fmt: skip
    with TwoNodes([*options, "--model_name", model]) as nodes:
        url = nodes.wait_ready()
        undisturbed = start_streams(url, wanted)
        finish(undisturbed)
        assert not any(stream.error for stream in undisturbed)
        streams = start_streams(url, wanted)
        for number, name in zip(range(kills), itertools.cycle(("router", "detokenizer"))):
            before = tokens_of(streams)
            wait_until(lambda before=before: tokens_of(streams) > before + 50, "the streams do not go on")  # type: ignore[misc]
            nodes.node_0.child(name).kill()
            nodes.node_0.wait_for(
                rf"(?s)({name} was killed by SIGKILL: it is started again.*){{{number // 2 + 1}}}"
            )
        finish(streams)
        assert [one.differs(other) for one, other in zip(streams, undisturbed, strict=True)] == ["", ""]
        rank = nodes.node_1.child("backend-1")
        assert nodes.node_0.stop() == 0
        assert nodes.node_1.wait() == 0
        assert not rank.is_running()
        nodes.node_1.check_nothing_left()


def test_a_node_whose_node_0_has_lost_its_router_for_good_ends_by_itself(mock: list[str]) -> None:
    with TwoNodes([*mock, "--max_restarts", "0"]) as nodes:
        nodes.wait_ready()
        nodes.node_0.child("router").kill()
        assert nodes.node_1.wait() == 1
        assert "The connection to node 0 at tcp://127.0.0.1" in last_error(nodes.node_1)
        assert nodes.node_0.wait() == 1
        nodes.node_1.check_nothing_left()
        nodes.node_0.check_nothing_left()


@contextlib.contextmanager
def network_namespace() -> Iterator[tuple[str, str]]:
    """(name, address of this machine as seen from it): a machine of its own, but for the file system."""
    name, link = f"lightllm-{os.getpid()}", f"ll{os.getpid() % 100000}"
    run = lambda *words: subprocess.run(["ip", *words], check=True, capture_output=True)  # noqa: E731
    run("netns", "add", name)
    try:
        run("link", "add", f"{link}a", "type", "veth", "peer", "name", f"{link}b", "netns", name)
        run("addr", "add", "10.213.0.1/30", "dev", f"{link}a")
        run("link", "set", f"{link}a", "up")
        run("-n", name, "addr", "add", "10.213.0.2/30", "dev", f"{link}b")
        run("-n", name, "link", "set", f"{link}b", "up")
        run("-n", name, "link", "set", "lo", "up")
        yield name, "10.213.0.1"
    finally:
        run("netns", "del", name)


def can_make_namespaces() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with network_namespace():
            return True
    except subprocess.CalledProcessError:
        return False


@pytest.mark.slow
def test_two_network_namespaces_serve(tmp_path: Path) -> None:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    path = make_checkpoint(tmp_path / "model", num_key_value_heads=1)
    with network_namespace() as (name, host):
        command = ("ip", "netns", "exec", name, *SERVER_COMMAND)
        with TwoNodes(model_options(path), host=host, node_1_command=command) as nodes:
            check_serves(nodes, path)


def set_link(name: str, state: str) -> None:
    """The network between the namespace `name` and this machine."""
    (device,) = [d for d in os.listdir("/sys/class/net") if d.startswith("ll") and d.endswith("a")]
    subprocess.run(["ip", "link", "set", device, state], check=True)


@pytest.mark.slow
def test_a_machine_that_goes_silent_is_named_and_goes_on_when_it_is_there_again(tmp_path: Path) -> None:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    path = make_checkpoint(tmp_path / "model")
    with network_namespace() as (name, host):
        command = ("ip", "netns", "exec", name, *SERVER_COMMAND)
        options = [*model_options(path), "--round_timeout", "4", "--max_restarts", "20"]
        with TwoNodes(options, host=host, node_1_command=command) as nodes:
            url = nodes.wait_ready()
            wanted = [("/generate_stream", {"inputs": "hello " * 20, "parameters": {"max_new_tokens": 600, "ignore_eos": True, "return_details": True, "seed": 7}})]  # fmt: skip
            undisturbed = start_streams(url, wanted)
            finish(undisturbed)
            streams = start_streams(url, wanted)
            wait_until(lambda: tokens_of(streams) > 50, "no tokens come")
            set_link(name, "down")
            nodes.node_0.wait_for(r"lost node 1 \(", 60)
            assert httpx.get(f"{url}/health").status_code == 503
            set_link(name, "up")
            finish(streams)
            assert streams[0].differs(undisturbed[0]) == ""
            assert nodes.node_0.stop() == 0
            assert nodes.node_1.wait() == 0


@pytest.mark.slow
def test_a_machine_that_stays_silent_gives_clients_an_error(tmp_path: Path) -> None:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    path = make_checkpoint(tmp_path / "model")
    with network_namespace() as (name, host):
        command = ("ip", "netns", "exec", name, *SERVER_COMMAND)
        options = [*model_options(path), "--round_timeout", "4", "--nodes_timeout", "30"]
        with TwoNodes(options, host=host, node_1_command=command) as nodes:
            stream = Stream(nodes.wait_ready())
            stream.wait_for_tokens()
            set_link(name, "down")
            check_ended_with_an_error(stream, 90)
            assert nodes.node_0.wait() == 1
            assert "there came no tensor parallel ranks 1 (nodes 1)" in last_error(nodes.node_0)
            assert nodes.node_1.wait(60) == 1
            assert "The connection to node 0 at" in last_error(nodes.node_1)

"""What a launcher does to the server's streams, signals and limits: it starts, serves, and stops when told."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from support.model_folder import make_model_folder
from support.server import SERVER_COMMAND, LightLLMServer

from lightllm.ipc.child import die_with_parent


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("model") / "tiny"))


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def generate(url: str) -> int:
    return httpx.post(
        url + "/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 3}}, timeout=30
    ).status_code


@contextlib.contextmanager
def blind_server(
    model_dir: str, base: Path, *options: str, command=SERVER_COMMAND, **streams
) -> Iterator[tuple]:
    """(process, URL) of a server whose log nobody needs to read."""
    port = free_port()
    process = subprocess.Popen(
        [*command, "--model_dir", model_dir, "--mock_backend", "--port", str(port), *options],
        env=os.environ | {"LIGHTLLM_RUNTIME_BASE": str(base)},
        preexec_fn=die_with_parent,
        start_new_session=True,
        **(
            {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            | streams
        ),
    )
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, process.returncode
        try:
            return httpx.get(url + "/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(healthy)
        yield process, url
    finally:
        children = [process, *psutil.Process(process.pid).children()] if process.poll() is None else [process]
        for child in children:
            child.kill()
        process.wait()


def check_serves_and_stops(process: subprocess.Popen, url: str) -> None:
    assert generate(url) == 200
    process.terminate()
    assert process.wait(20) == 0


STREAMS = """
import os, socket, sys
from lightllm.server.api_server import open_missing_streams
open_missing_streams()
first = socket.socket().fileno()
print("out"); print("err", file=sys.stderr)
os.write(int(sys.argv[1]), b"%d %s" % (first, sys.stdin.read().encode()))
"""


@pytest.mark.parametrize("redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "<&- 2>&-", "</dev/null"])
def test_a_stream_that_is_closed_is_opened_before_anything_takes_its_number(redirection):
    reader, writer = os.pipe()
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", STREAMS, str(writer)]
    subprocess.run(command, check=True, pass_fds=(writer,), stdin=subprocess.DEVNULL, timeout=60)
    os.close(writer)
    number, _, rest = os.read(reader, 100).partition(b" ")
    os.close(reader)
    assert int(number) > 2 and rest == b""


@pytest.mark.slow  # what it does about them: test_a_stream_that_is_closed_is_opened_before_anything_takes_its_number
def test_a_server_whose_streams_are_closed_serves(model_dir, tmp_path):
    command = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *SERVER_COMMAND)
    with blind_server(model_dir, tmp_path, command=command) as (process, url):
        descriptors = {n: os.readlink(f"/proc/{process.pid}/fd/{n}") for n in range(3)}
        assert not any("socket" in target for target in descriptors.values()), descriptors
        check_serves_and_stops(process, url)


@pytest.mark.slow  # what is done about it: test_log_output.py
def test_a_server_whose_log_has_no_room_serves(model_dir, tmp_path):
    with open("/dev/full", "w") as full, blind_server(model_dir, tmp_path, "--log_level", "debug", stderr=full) as (process, url):  # fmt: skip
        for _ in range(20):
            assert generate(url) == 200
        check_serves_and_stops(process, url)


def test_a_reader_of_the_log_that_goes_away_after_a_line_ends_nothing(model_dir, tmp_path):
    reader, writer = os.pipe()
    with blind_server(model_dir, tmp_path, stderr=writer) as (process, url):
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        check_serves_and_stops(process, url)


def test_a_reader_of_the_log_that_stops_reading_holds_up_neither_requests_nor_signals(model_dir, tmp_path):
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with blind_server(model_dir, tmp_path, "--log_level", "debug", stderr=writer) as (process, url):
        os.close(writer)
        with httpx.Client() as client:  # the start alone fills the pipe; what the children write must go on
            for _ in range(80):
                body = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
                assert client.post(url + "/generate", json=body, timeout=30).status_code == 200
        begin = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - begin < 10
    os.close(reader)


def test_sigquit_drains_sigusr1_ends_nothing_and_processes_that_lost_their_parents_are_reaped(model_dir):
    """The first process of a container gets such children; here they are the shell's that becomes the server."""
    command = ("sh", "-c", 'sleep 0.2 & sleep 0.2 & exec "$@"', "sh", *SERVER_COMMAND)
    with LightLLMServer(["--model_dir", model_dir, "--mock_backend"], command=command) as server:
        process = psutil.Process(server.process.pid)
        wait_for(lambda: all(child.status() != psutil.STATUS_ZOMBIE for child in process.children()))
        assert "sleep" not in {child.name() for child in process.children()}
        server.send(signal.SIGUSR1)
        server.wait_for("received SIGUSR1, which means nothing here")
        server.send(signal.SIGUSR2)
        server.wait_for("received SIGUSR2, which means nothing here")
        assert generate(server.url) == 200
        server.send(signal.SIGQUIT)
        server.wait_for("draining: 0 running")
        assert server.wait() == 0
        server.check_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_while_the_launch_imports_its_code_ends_it_in_order(model_dir, number):
    """As the first process of a container, where the default action of a signal is none: `unshare` where it may."""
    server = LightLLMServer(["--model_dir", model_dir, "--mock_backend"])
    try:
        wait_for(lambda: _handles(server.process.pid, number))
        server.process.send_signal(number)
        assert server.wait() == 0
        assert "Traceback" not in server.log
        server.check_nothing_left()
    finally:
        server.abandon()


def _handles(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(caught >> (number - 1) & 1) and (
        number != signal.SIGINT or bool(caught >> (signal.SIGQUIT - 1) & 1)
    )


def test_children_that_are_stopped_while_they_start_end_by_themselves(model_dir):
    server = LightLLMServer(["--model_dir", model_dir, "--mock_backend"])
    try:
        wait_for(lambda: len(server.note_children()) >= 4)
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert "killed" not in server.log
        server.check_nothing_left()
    finally:
        server.abandon()


def test_connections_that_take_all_descriptors_while_the_server_starts_do_not_end_it(model_dir, tmp_path):
    """ZMQ aborts a process that has no descriptor left for a connection of the Router."""
    port = free_port()
    command = ("sh", "-c", 'ulimit -n 48; exec "$@"', "sh", *SERVER_COMMAND)
    options = ["--model_dir", model_dir, "--mock_backend", "--port", str(port)]
    server = LightLLMServer(options, command=command)
    idle: list[socket.socket] = []

    def more() -> bool:
        with contextlib.suppress(OSError):
            idle.append(socket.create_connection(("127.0.0.1", port), 1))
        return len(idle) >= 200

    try:
        wait_for(lambda: more() or server.process.poll() is not None)
        while not server.url:
            more()
            with contextlib.suppress(AssertionError):
                server.url = server.wait_for(r"ready: (http://\S+)", 0.05).group(1)
            assert server.process.poll() is None, server.log
        server.wait_for("connections are open: more have to wait")
        for connection in idle:
            connection.close()
        assert generate(server.url) == 200
        assert server.stop() == 0
    finally:
        server.abandon()


ORCHESTRATED = {
    # a job of torchrun or Slurm around us: its ranks are not ours
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "1", "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8", "OMPI_COMM_WORLD_RANK": "2",
    # proxies are for connections to others
    "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
    # a service of Kubernetes that is named lightllm, and what has no value
    "LIGHTLLM_SERVICE_HOST": "192.0.2.1", "LIGHTLLM_SERVICE_PORT": "80", "LIGHTLLM_PORT": "tcp://192.0.2.1:80",
    "LIGHTLLM_PORT_80_TCP": "tcp://192.0.2.1:80", "LIGHTLLM_API_KEY": "", "LIGHTLLM_TP": "", "TORCH_LOGS": "",
    "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "garbage",
    # the interpreter's own
    "PYTHONOPTIMIZE": "2", "PYTHONUNBUFFERED": "x", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "LANG": "tr_TR.ISO-8859-9", "TZ": "Nowhere/Land",
}  # fmt: skip


def test_what_orchestrators_and_shells_put_into_the_environment_changes_nothing(model_dir, tmp_path):
    folder = tmp_path / "Größe"
    shutil.copytree(model_dir, folder)
    options = ["--model_dir", str(folder), "--mock_backend"]
    with LightLLMServer(options, environment=ORCHESTRATED) as server, httpx.Client(trust_env=False) as client:
        server.wait_for("OMP_NUM_THREADS='garbage' is no number of threads: ignored")
        server.wait_for("LIGHTLLM_API_KEY is empty: clients need no key")
        assert client.get(server.url + "/health").status_code == 200
        assert client.get(server.url + "/v1/models").json()["data"][0]["id"] == "Größe"
        body = {"inputs": "Größe 🙂", "parameters": {"max_new_tokens": 5}}
        assert client.post(server.url + "/generate", json=body).status_code == 200

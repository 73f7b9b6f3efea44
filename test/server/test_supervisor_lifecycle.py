"""The Supervisor with fake children: readiness, failures of the start, deaths, stopping, cleaning up."""

import os
import re
import signal
import socket
import subprocess
import time

import psutil
import pytest

from lightllm import __version__
from lightllm.ipc.image_folder import SHARED_MEMORY
from lightllm.ipc.openmp_files import remove_stale_openmp_registrations
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ops.cpu_kind import described


def test_ready_line_names_url_model_and_slots_and_the_table_every_process(launch):
    server = launch(["--api_key", "secret-key"])
    url = server.wait_ready()
    ready = server.wait_for(r"lightllm \S+ ready: .*").group(0)
    assert ready.startswith(f"lightllm {__version__} ready: {url} — model tiny — 77 slots — started in ")
    server.wait_for(f"Uvicorn running on {url}\n")
    for name in ("supervisor", "http-0", "router", "backend-0"):
        server.wait_for(rf"  {name} +\d+\.\d\d s ")
    server.wait_for("router loading — half way")
    server.wait_for(f"processor: {re.escape(described())}")
    titles = [" ".join(psutil.Process(server.process.pid).cmdline())]
    titles += [" ".join(child.cmdline()) for child in server.children]
    assert sorted(title.strip() for title in titles) == sorted(
        f"lightllm {name}" for name in ("api_server", "http-0", "router", "backend-0")
    )
    assert server.stop() == 0


def test_start_table_of_the_supervisor_adds_up_to_the_whole_wall_time(launch):
    begin = time.monotonic()
    server = launch()
    server.wait_ready()
    wall = time.monotonic() - begin
    claimed = float(server.wait_for(r"started in (\d+\.\d+) s\n").group(1))
    assert 0.4 * wall < claimed <= wall + 0.02
    server.stop()


def test_a_startup_error_of_a_child_ends_the_launch_with_name_reason_and_remedy(launch):
    server = launch(backend_0="bad-model", router="hang")
    assert server.wait(10) == 2
    assert server.log.rstrip().endswith(
        "lightllm: error: backend-0 failed to start: The model is broken. Take another one."
    )
    server.check_nothing_left()


def test_an_unexpected_error_of_a_child_ends_the_launch(launch):
    server = launch(backend_0="raise")
    assert server.wait(10) == 2
    assert "backend-0 failed to start: ValueError: a surprise" in server.log
    server.check_nothing_left()


def test_a_child_that_dies_silently_is_named_with_its_last_lines(launch):
    server = launch(http_0="die")
    assert server.wait(10) == 2
    assert "  http-0 | of old age\n" in server.log
    assert "lightllm: error: http-0 failed to start: ended with exit code 3" in server.log
    server.check_nothing_left()


def test_startup_timeout_names_who_is_late(launch):
    server = launch(["--startup_timeout", "5"], router="hang")
    assert server.wait(30) == 2
    assert "Not ready after 5 s: router (half way). Raise --startup_timeout" in server.log
    server.check_nothing_left()


def test_sigterm_before_ready_stops_at_once(launch):
    server = launch(router="hang")
    server.wait_for("router loading")
    server.send(signal.SIGTERM)
    assert server.wait(10) == 0
    server.check_nothing_left()


def test_a_child_that_is_deaf_while_it_loads_does_not_hold_up_the_stop(launch):
    server = launch(router="deaf")
    server.wait_for("router loading")
    router = server.child("router")
    wait_until_stopped(router)
    begin = time.monotonic()
    server.send(signal.SIGTERM)
    router.wait(20)
    assert time.monotonic() - begin < 2.9  # what is ready gets 3 s
    assert server.wait(20) == 0
    assert " W " not in server.log
    server.check_nothing_left()


def wait_until_stopped(process: psutil.Process) -> None:
    end = time.monotonic() + 10
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_that_finds_no_room_in_shared_memory_is_told_with_the_room(launch):
    server = launch(backend_0="bus")
    assert server.wait(20) == 2
    (folder,) = re.findall(r"(/\S+) has \d+ of \d+ KiB free. /dev/shm has \d+ of \d+ KiB free\.", server.log)
    assert folder.startswith(str(server.runtime_base))
    assert "backend-0 failed to start: was killed by SIGBUS: shared memory has no room left." in server.log
    server.check_nothing_left()


def test_a_child_killed_while_serving_ends_the_server_with_its_name(launch):
    server = launch(["--max_restarts", "0"])
    server.wait_ready()
    server.child("router").kill()
    assert server.wait(10) == 1
    assert "lightllm: error: router failed: was killed by SIGKILL" in server.log
    server.check_nothing_left()


def test_sigterm_waits_for_running_requests(launch, tmp_path):
    load = tmp_path / "load"
    load.write_text("3")
    server = launch(load=load)
    server.wait_ready()
    server.send(signal.SIGTERM)
    server.wait_for("draining: 3 running")
    server.wait_for("http-0 got drain")
    server.send(signal.SIGTERM)  # some launchers send it to the process and to its group
    server.wait_for("received SIGTERM(.|\n)*received SIGTERM")
    assert "got stop" not in server.log
    load.write_text("0")
    assert server.wait(10) == 0
    assert server.log.index("http-0 got stop") < server.log.index("router got stop")
    server.check_nothing_left()


def test_drain_timeout_ends_the_waiting(launch, tmp_path):
    load = tmp_path / "load"
    load.write_text("3")
    server = launch(["--drain_timeout", "0.5"], load=load)
    server.wait_ready()
    begin = time.monotonic()
    server.send(signal.SIGTERM)
    assert server.wait(10) == 0
    assert 0.5 <= time.monotonic() - begin < 5  # and not the 30 s of the default
    server.check_nothing_left()


def test_second_sigint_stops_at_once(launch, tmp_path):
    load = tmp_path / "load"
    load.write_text("3")
    server = launch(load=load)
    server.wait_ready()
    server.send(signal.SIGINT)
    server.wait_for("draining: 3 running, 0 waiting, at most 5 s")
    begin = time.monotonic()
    server.send(signal.SIGINT)
    assert server.wait(10) == 130
    assert time.monotonic() - begin < 4.5  # the grace is 5 s
    server.check_nothing_left()


def test_shared_memory_of_openmp_is_removed_after_a_child_that_does_not_do_it(launch):
    server = launch(backend_0="registered")
    server.wait_ready()
    server.send(signal.SIGTERM)
    assert server.wait(10) == 0
    server.check_nothing_left()


def test_shared_memory_of_openmp_whose_process_is_gone_is_removed_at_the_next_start(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = [
        f"__KMP_REGISTERED_LIB_{os.getpid()}_{os.getuid()}",
        f"__KMP_REGISTERED_LIB_{gone.pid}_{os.getuid() + 1}",
        "x_0",
    ]
    for name in [*kept, f"__KMP_REGISTERED_LIB_{gone.pid}_{os.getuid()}"]:
        (tmp_path / name).touch()
    remove_stale_openmp_registrations(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_child_that_does_not_stop_is_killed_and_named(launch):
    server = launch(backend_0="stubborn")
    server.wait_ready()
    server.send(signal.SIGTERM)
    assert server.wait(12) == 0
    assert "backend-0 did not end within 3 s: killed" in server.log
    server.check_nothing_left()


def test_a_child_that_has_said_that_it_stopped_has_its_whole_time_to_end(launch):
    server = launch(backend_0="tidy")
    server.wait_ready()
    server.send(signal.SIGTERM)
    assert server.wait(12) == 0
    assert "all in order" in server.log and "killed" not in server.log
    server.check_nothing_left()


def test_a_frozen_child_is_killed_at_the_stop_and_waited_for_once(launch):
    server = launch()
    server.wait_ready()
    server.child("http-0").suspend()
    server.send(signal.SIGTERM)
    assert server.wait(12) == 0
    assert server.log.count("http-0 did not end within 3 s: killed") == 1
    server.check_nothing_left()


def test_kill_9_of_the_supervisor_leaves_no_child_and_the_next_start_removes_its_folder(launch):
    server = launch()
    server.wait_ready()
    server.send(signal.SIGKILL)
    server.wait(10)
    server.check_nothing_left(files=False)
    (stale,) = server.runtime_folders()
    images = SHARED_MEMORY / f"lightllm-{os.getuid()}" / f"{server.process.pid}-0123abcd"
    images.mkdir(parents=True)
    (images / "lock").touch()
    (images / "7").write_bytes(bytes(4096))  # of a server that saw
    successor = launch()
    successor.wait_ready()
    assert not images.exists()
    successor.stop()
    assert stale.exists()  # another base folder: not touched
    RuntimeDir.create(server.runtime_base).remove()
    assert not stale.exists()


def test_port_in_use_is_one_line_and_exit_code_2(launch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = launch(["--port", str(port)])
        assert server.wait(10) == 2
    assert server.log == (
        f"lightllm: error: Port {port} on 127.0.0.1 is in use. Stop what listens there, or choose another --port "
        "(0 takes a free one).\n"
    )
    server.check_nothing_left()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--port", "many"], "Argument --port: invalid int value: 'many'"),
        (["--no_such_option"], "Unrecognized arguments: --no_such_option."),
        (["--model_dir", "/no/such/folder"], "The model folder .*/no/such/folder.* does not exist"),
        (["--model_dir", "/"], "/ has no config.json"),
        (["--mock_backend", "speed=9"], "--mock_backend: 'speed' is not `key=value` with a known key."),
        (["--host", "203.0.113.1"], "--host 203.0.113.1 is not an address of this machine."),
        (["--chat_template", "/no/such/file"], "--chat_template /no/such/file is not a file."),
    ],
)  # fmt: skip
def test_wrong_options_end_the_launch_with_one_line(launch, options, message):
    server = launch(options)
    assert server.wait(10) == 2
    assert re.match(f"lightllm: error: {message}", server.log)
    assert server.log.count("\n") == 1
    server.check_nothing_left()

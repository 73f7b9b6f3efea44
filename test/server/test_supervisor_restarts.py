"""The Supervisor with fake children: what is started again, and signals while one waits for that."""

import signal
import struct
import time

import psutil
import pytest
from support.server import LightLLMServer


def test_a_child_killed_while_serving_is_started_again_until_that_happens_too_often(launch):
    server = launch(["--max_restarts", "2"], backend_1="ready", detokenizer="ready")
    server.wait_ready()
    ranks = [server.child(f"backend-{rank}") for rank in range(2)]
    ranks[1].kill()
    server.wait_for("backend-1 was killed by SIGKILL: all 2 of its group are started again\n")
    server.wait_for("router got attach")
    psutil.wait_procs(ranks, timeout=10)
    server.wait_for("(?s)(backend-0 ready.*){2}")
    server.child("detokenizer").kill()
    server.wait_for("detokenizer was killed by SIGKILL: it is started again\n")
    server.wait_for("(?s)(detokenizer ready.*){2}(router got attach.*)")
    server.wait_for("(?s)(backend-1 ready.*){2}")
    server.child("backend-0").kill()
    # At once if it had lasted for ten seconds, on a busy machine; see test_process_group.py.
    server.wait_for("backend-0 was killed by SIGKILL: all 2 of its group are started again( in 0.5 s)?\n")
    server.wait_for("(?s)(backend-1 ready.*){3}")
    server.child("backend-1").kill()
    assert server.wait(10) == 1
    last = server.log.splitlines()[-1]
    assert "backend-1 failed: was killed by SIGKILL (after 2 restarts within 300 s: --max_restarts)." in last
    server.check_nothing_left()


@pytest.mark.slow
def test_a_process_that_was_started_again_is_not_judged_by_the_beat_of_the_one_before(launch):
    server = launch(["--round_timeout", "5"], http_1="sluggish")
    server.wait_ready()
    (runtime,) = server.runtime_folders()
    beat = runtime / "beats" / "http-1"
    end = time.monotonic() + 10
    while not beat.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    server.child("http-1").suspend()
    beat.write_bytes(struct.pack("<d", time.monotonic() - 30))
    server.wait_for(r"http-1 failed: made no progress for 3\d s \(--round_timeout\): it is started again\n")
    server.wait_for("(?s)(http-1 ready.*){2}")
    time.sleep(2.5)  # the watch looks every second
    assert server.log.count("(--round_timeout)") == 1
    assert server.stop() == 0


def kill_until_it_waits(server: LightLLMServer, name: str) -> None:
    """Its second restart is not at once."""
    server.child(name).kill()
    server.wait_for(f"(?s)({name} ready.*){{2}}")
    server.child(name).kill()
    server.wait_for(f"{name} was killed by SIGKILL: it is started again in 0.5 s\n")


def test_signals_while_an_http_server_waits_for_its_restart_are_obeyed(launch, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key\n")
    server = launch(["--api_key_file", str(keys)])
    server.wait_ready()
    kill_until_it_waits(server, "http-0")
    server.send(signal.SIGHUP)
    server.wait_for("received SIGHUP")
    server.wait_for("(?s)(http-0 ready.*){3}")
    server.child("http-0").kill()
    server.wait_for("started again in 1.0 s\n")
    server.send(signal.SIGTERM)
    assert server.wait(10) == 0
    server.check_nothing_left()


@pytest.mark.slow
def test_a_second_sigint_while_a_process_waits_for_its_restart_stops_at_once(launch, tmp_path):
    load = tmp_path / "load"
    load.write_text("3")
    server = launch(load=load, detokenizer="ready")
    server.wait_ready()
    kill_until_it_waits(server, "detokenizer")
    server.send(signal.SIGINT)
    server.wait_for("draining: 3 running")
    begin = time.monotonic()
    server.send(signal.SIGINT)
    assert server.wait(10) == 130
    assert time.monotonic() - begin < 4.5  # the grace is 5 s
    server.check_nothing_left()


def test_what_a_child_is_told_before_it_listens_it_obeys_then(launch, tmp_path):
    """SIGTERM while an Http Server is being started again: it takes no new requests."""
    load = tmp_path / "load"
    load.write_text("3")
    server = launch(load=load, http_0="late", http_1="ready")
    server.wait_ready()
    server.child("http-0").kill()
    server.wait_for("(?s)(http-0 loading — deaf.*){2}")
    server.send(signal.SIGTERM)
    server.wait_for("http-0 got drain")
    load.write_text("0")
    assert server.wait(20) == 0
    server.check_nothing_left()


def test_a_process_that_cannot_be_started_again_ends_the_server_with_one_line_and_the_cause(launch):
    server = launch(["--max_restarts", "2"], backend_0="once")
    server.wait_ready()
    server.child("backend-0").kill()
    assert server.wait(20) == 1
    (line,) = [line for line in server.log.splitlines() if line.startswith("lightllm: error:")]
    assert line == (
        "lightllm: error: backend-0 failed: The model is broken. (after 2 restarts within 300 s: --max_restarts). "
        "Take another one."
    )
    assert server.log.splitlines()[-1] == line
    server.check_nothing_left()

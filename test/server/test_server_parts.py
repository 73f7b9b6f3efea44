"""What the Supervisor is made of: environment, plan, drain, listener, start-up table."""

import dataclasses
import json
import os
import socket
import struct

import pytest
from support.model_folder import make_model_folder

from lightllm.config import ServerConfig
from lightllm.errors import InvalidModel, InvalidOption, StartupError
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot, SnapshotReader, SnapshotWriter
from lightllm.ipc.stalls import StallWatch
from lightllm.ops.cpu_kind import CpuKind
from lightllm.server.drain import Drain
from lightllm.server.environment import (
    backend_environment,
    environment_warnings,
    helper_environment,
    without_empty_values,
)
from lightllm.server.listener import open_listener, url_of
from lightllm.server.plan import plan_backends, plan_children
from lightllm.server.prepare import DEMO_MODEL_NAME, default_model_name, resolve_config
from lightllm.server.start_table import PhaseClock, child_phases, format_table


def test_a_backend_gets_the_threads_that_were_asked_for():
    environment = backend_environment(ServerConfig(cpu_threads=3), {"OMP_NUM_THREADS": "9"})
    assert environment["OMP_NUM_THREADS"] == "3"
    assert int(backend_environment(ServerConfig(), {})["OMP_NUM_THREADS"]) >= 1
    assert backend_environment(ServerConfig(mock_backend=""), {})["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(("tp", "nodes", "threads"), [(1, 1, "8"), (4, 1, "2"), (4, 2, "4"), (16, 1, "1")])
def test_the_ranks_of_a_machine_share_its_cores(monkeypatch, tp, nodes, threads):
    monkeypatch.setattr("lightllm.machine.compute_threads", lambda: 8)
    config = ServerConfig(tp=tp, nnodes=nodes, device="cpu")
    assert backend_environment(config, {})["OMP_NUM_THREADS"] == threads


def test_openmp_yields_where_intels_runtime_is_installed_and_else_sleeps(monkeypatch):
    assert backend_environment(ServerConfig(), {"LD_PRELOAD": "/lib/x.so"})["LD_PRELOAD"].endswith(
        "/libiomp5.so"
    )
    assert "OMP_WAIT_POLICY" not in backend_environment(ServerConfig(), {})
    assert "LD_PRELOAD" not in backend_environment(ServerConfig(), {"LD_PRELOAD": "/opt/libiomp5.so"})
    monkeypatch.setattr("lightllm.server.environment.intel_openmp", lambda: None)
    assert backend_environment(ServerConfig(), {})["OMP_WAIT_POLICY"] == "passive"
    assert "LD_PRELOAD" not in backend_environment(ServerConfig(), {})


def test_a_backend_is_told_to_which_instructions_its_libraries_are_capped(monkeypatch):
    monkeypatch.setattr("lightllm.ops.cpu_kind.detect", lambda root: CpuKind.AMX)
    assert "ONEDNN_MAX_CPU_ISA" not in backend_environment(ServerConfig(), {})
    capped = backend_environment(ServerConfig(), {"LIGHTLLM_CPU_KIND": "avx512"})
    assert capped["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE" and capped["ATEN_CPU_CAPABILITY"] == "avx512"
    environ = {"LIGHTLLM_CPU_KIND": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX"}
    assert "ONEDNN_MAX_CPU_ISA" not in backend_environment(ServerConfig(), environ)


def test_a_kind_of_processor_that_does_not_exist_ends_the_launch(monkeypatch, tmp_path):
    config = ServerConfig(model_dir=str(make_model_folder(tmp_path / "model")))
    resolve_config(config)
    monkeypatch.setenv("LIGHTLLM_CPU_KIND", "mmx")
    with pytest.raises(StartupError, match="LIGHTLLM_CPU_KIND=mmx is no kind of processor. Set it to one of"):
        resolve_config(config)


def test_what_the_user_has_set_in_the_environment_stays():
    environ = {"OMP_NUM_THREADS": "9", "OMP_WAIT_POLICY": "active", "MALLOC_ARENA_MAX": "8"}
    assert not environ.keys() & backend_environment(ServerConfig(), environ).keys()
    assert not environ.keys() & helper_environment(environ).keys()


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5", "4,0", "1e3", "99999999"])
def test_a_number_of_threads_that_is_none_is_ignored_and_told(value):
    environ = {"OMP_NUM_THREADS": value}
    for config in (ServerConfig(), ServerConfig(mock_backend="")):
        assert int(backend_environment(config, environ)["OMP_NUM_THREADS"]) >= 1
    assert helper_environment(environ)["OMP_NUM_THREADS"] == "1"
    assert environment_warnings(environ) == [f"OMP_NUM_THREADS={value!r} is no number of threads: ignored"]


@pytest.mark.parametrize("value", ["", "3", " 3 ", "4,2"])
def test_a_number_of_threads_and_an_empty_one_are_no_reason_to_complain(value):
    environ = {"OMP_NUM_THREADS": value, "CUDA_VISIBLE_DEVICES": "", "RANK": "7", "WORLD_SIZE": "8"}
    assert environment_warnings(environ) == []
    assert ("OMP_NUM_THREADS" in helper_environment(environ)) == (value == "")


@pytest.mark.parametrize("option", ["model_dir", "model_name", "chat_template"])
def test_a_name_that_is_no_text_is_refused(option):
    name = os.fsdecode(b"Gr\xf6\xdfe")
    with pytest.raises(InvalidOption) as refusal:
        resolve_config(ServerConfig(**{option: ["good", name] if option == "model_name" else name}))
    assert str(refusal.value).startswith(rf"--{option} 'Gr\udcf6\udcdfe' holds bytes that are no text.")


def test_libraries_do_not_see_variables_without_a_value():
    environ = {
        "TORCH_LOGS": "",
        "OMP_NUM_THREADS": " ",
        "KMP_BLOCKTIME": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": "/bin",
    }
    kept = {"KMP_BLOCKTIME": "1", "CUDA_VISIBLE_DEVICES": "", "PATH": "/bin"}
    assert without_empty_values(environ) == kept  # without devices is not the same as not set


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True), (0o700, False)])
def test_a_secret_that_others_can_read_is_warned_of(tmp_path, caplog, mode, warned):
    secret = tmp_path / "secret"
    secret.write_text("a secret of the nodes, long enough")
    secret.chmod(mode)
    folder = str(make_model_folder(tmp_path / "model"))
    resolve_config(
        ServerConfig(model_dir=folder, tp=2, nnodes=2, cluster_secret_file=str(secret), mock_backend="")
    )
    assert (f"{secret} can be read by others: chmod 600 {secret}" in caplog.text) == warned


def test_the_plan_has_a_process_for_every_rank_and_worker():
    specs = plan_children(ServerConfig(tp=2, httpserver_workers=2), 7)
    names = [spec.name for spec in specs]
    assert sorted(names) == [
        "backend-0", "backend-1", "detokenizer", "health", "http-0", "http-1", "metrics", "router",
    ]  # fmt: skip
    assert len({(spec.module, *spec.arguments) for spec in specs}) == len(names)
    assert [spec.name for spec in specs if not spec.needed] == ["health", "metrics"]
    assert [spec.descriptors for spec in specs if spec.serves_http] == [(7,), (7,)]


def test_a_model_that_sees_gets_two_processes_more_unless_only_its_language_model_is_served(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    config = ServerConfig(model_dir=str(tmp_path))
    names = [spec.name for spec in plan_children(config, 7)]
    assert sorted(names) == [
        "backend-0", "cache", "detokenizer", "health", "http-0", "metrics", "router", "visual-0",
    ]  # fmt: skip
    two = {spec.name for spec in plan_children(dataclasses.replace(config, visual_dp=2), 7)}
    assert {"visual-0", "visual-1"} < two
    for other in ({"disable_vision": True}, {"mock_backend": ""}, {"nnodes": 2, "tp": 2}):
        names = [spec.name for spec in plan_children(dataclasses.replace(config, **other), 7)]
        assert not {"cache", "visual-0"} & set(names)


def test_model_backends_are_one_group_and_every_other_process_is_one_of_its_own():
    specs = plan_children(ServerConfig(tp=2), 7)
    groups = ["backend", "backend", "http-0", "router", "detokenizer", "health", "metrics"]
    assert [spec.group for spec in specs] == groups


def test_other_nodes_run_their_ranks_only():
    specs = plan_backends(ServerConfig(tp=4, nnodes=2, node_rank=1))
    assert [spec.name for spec in specs] == ["backend-2", "backend-3"]


@pytest.fixture
def snapshots(tmp_path):
    path = tmp_path / "snapshot"
    return SnapshotWriter(path), SnapshotReader(path)


def test_a_drain_is_finished_when_nothing_ran_or_waited_for_a_while(snapshots):
    writer, reader = snapshots
    writer.write(Snapshot(ready=1, running=1))
    drain = Drain(reader, now=100.0, grace=30.0)
    assert not drain.finished(101.0)
    writer.write(Snapshot(ready=1, waiting=1))
    assert not drain.finished(102.0)
    writer.write(Snapshot(ready=1))
    assert not drain.finished(103.0)
    writer.write(Snapshot(ready=1, running=1))
    assert not drain.finished(103.3)
    writer.write(Snapshot(ready=1))
    assert not drain.finished(104.0)
    assert drain.finished(104.0 + drain.settle_seconds)


def test_a_drain_goes_on_while_a_router_is_being_started_again(snapshots):
    writer, reader = snapshots
    writer.write(Snapshot(ready=0))  # it does not know yet what runs
    drain = Drain(reader, now=100.0, grace=30.0)
    assert not drain.finished(101.0) and not drain.finished(105.0)
    writer.write(Snapshot(ready=1, unheard=1))
    assert not drain.finished(106.0) and not drain.finished(107.0)
    writer.write(Snapshot(ready=1))
    assert not drain.finished(108.0)
    assert drain.finished(109.0)


def test_a_drain_ends_with_its_time_and_is_shortened_once(snapshots):
    writer, reader = snapshots
    writer.write(Snapshot(ready=1, running=1))
    assert Drain(reader, 100.0, 30.0).finished(130.0)
    drain = Drain(reader, 100.0, 30.0)
    drain.shorten(110.0, 5.0)
    drain.shorten(114.0, 5.0)
    assert not drain.finished(114.9)
    assert drain.finished(115.0)


def test_what_stood_still_with_the_whole_machine_does_not_hang(tmp_path):
    runtime = RuntimeDir(tmp_path)
    writer = SnapshotWriter(runtime.snapshot_file)
    watch = StallWatch(runtime, ServerConfig(round_timeout=60.0))
    runtime.beats_dir.mkdir()

    def check(now: float, beat: float) -> str | None:
        (runtime.beats_dir / "router").write_bytes(struct.pack("<d", beat))
        writer.write(Snapshot(ready=1, running=1, in_flight_rounds=1, round_due_since=99.0))
        late = [stall for stall in watch.check(now) if stall.seconds > 60.0]
        return late[0].process if late else None

    assert check(100.0, 99.9) is None
    assert check(5000.0, 99.9) is None  # the container was frozen
    for second in range(1, 60):
        assert check(5000.0 + second, 99.9) is None
    assert check(5061.0, 99.9) == "router"  # but this one does not go on
    assert check(5062.0, 5061.9) == "backend-0"  # and this one has finished no round since


def test_the_url_is_one_that_works_from_this_machine():
    with open_listener("0.0.0.0", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        socket.create_connection(("127.0.0.1", listener.getsockname()[1])).close()


def test_connections_probe_whether_their_client_still_exists():
    with open_listener("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_an_ipv6_url_has_brackets():
    try:
        listener = open_listener("::1", 0)
    except StartupError:
        pytest.skip("no IPv6 loopback")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_host_that_does_not_resolve_is_a_startup_error():
    with pytest.raises(StartupError, match="--host no.such.host.invalid cannot be resolved"):
        open_listener("no.such.host.invalid", 0)


def test_phases_of_a_child_add_up_to_its_time_until_ready():
    phases = child_phases({"first report": 0.5, "ready": 2.0}, {"import": 1.0, "weights": 0.25})
    assert phases == {"python": 0.5, "import": 1.0, "weights": 0.25, "other": 0.25}
    assert sum(phases.values()) == 2.0


def test_the_phase_clock_has_no_gap():
    clock = PhaseClock()
    clock.end("one")
    clock.end("two")
    clock.end("one")
    assert list(clock.phases) == ["one", "two"]
    assert clock.total == pytest.approx(sum(clock.phases.values()))
    lines = format_table(3.0, {"supervisor": {"python": 1.0, "nothing": 0.0}, "router": {"python": 2.0}})
    assert lines.splitlines() == [
        "started in 3.00 s", "  supervisor    1.00 s   python 1.00", "  router        2.00 s   python 2.00"
    ]  # fmt: skip


def test_the_model_name_is_the_hub_id_or_the_last_part_of_the_folder(tmp_path):
    folder = tmp_path / "Llama-3"
    folder.mkdir()
    assert default_model_name(f"{folder}/") == "Llama-3"
    assert default_model_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert default_model_name(None) == DEMO_MODEL_NAME


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architectures": ["NoSuchForCausalLM"]},
            "NoSuchForCausalLM is not supported. Supported are: .*LlamaForCausalLM",
        ),
        ({"architectures": "LlamaForCausalLM"}, "must be a list of names"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_attention_heads": "eight"}, "num_attention_heads"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_before_any_process_starts(tmp_path, change, message):
    folder = make_model_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=message):
        resolve_config(ServerConfig(model_dir=str(folder)))
    resolve_config(ServerConfig(model_dir=str(folder), mock_backend=""))  # serves any shape

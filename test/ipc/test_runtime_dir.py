"""The runtime folder: private, removed by its owner, and by the next start when the owner was killed."""

import os
import stat
import subprocess
import sys

import pytest

from lightllm.errors import StartupError
from lightllm.ipc.runtime_dir import RuntimeDir

OWNER = """
import sys
from lightllm.ipc.runtime_dir import RuntimeDir
print(RuntimeDir.create(sys.argv[1]).path, flush=True)
sys.stdin.read()
"""


def test_the_folder_is_private_and_removed(tmp_path):
    runtime = RuntimeDir.create(tmp_path)
    for folder in (runtime.path, runtime.path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    runtime.config_file.write_bytes(b"{}")
    runtime.remove()
    assert not runtime.path.exists()


def test_two_servers_of_one_user_do_not_disturb_each_other(tmp_path):
    one, two = RuntimeDir.create(tmp_path), RuntimeDir.create(tmp_path)
    assert one.path != two.path
    assert one.path.exists() and two.path.exists()
    one.remove()
    assert two.path.exists()
    two.remove()


def test_a_folder_lives_as_long_as_its_owner(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        path = owner.stdout.readline().strip()
        RuntimeDir.create(tmp_path).remove()
        assert os.path.isdir(path)
        owner.kill()
    RuntimeDir.create(tmp_path).remove()
    assert not os.path.exists(path)


def test_a_reused_process_number_does_not_keep_a_stale_folder(tmp_path):
    first = RuntimeDir.create(tmp_path)
    first.remove()
    stale = first.path.parent / f"{os.getpid()}-00000000"
    stale.mkdir()
    (stale / "router").touch()
    RuntimeDir.create(tmp_path).remove()
    assert not stale.exists()


def test_too_long_a_path_for_sockets_is_a_startup_error(tmp_path):
    with pytest.raises(StartupError, match="too long a name.*LIGHTLLM_RUNTIME_BASE"):
        RuntimeDir.create(tmp_path / ("x" * 90))


def test_an_impossible_base_is_a_startup_error(tmp_path):
    with pytest.raises(StartupError, match="No runtime folder can be made"):
        RuntimeDir.create(tmp_path / "x")


def test_every_address_fits_into_a_unix_socket_path():
    runtime = RuntimeDir("/" + "x" * 91)
    addresses = [runtime.router_intake, runtime.detokenizer_intake, runtime.round_results]
    addresses += [runtime.http_results(999), runtime.backend_rounds(99), runtime.backend_control(99) + ".new"]
    assert max(len(a.removeprefix("ipc://")) for a in addresses) <= 107

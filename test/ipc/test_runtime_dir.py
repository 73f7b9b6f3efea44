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
    for name in ("router", "lock"):
        (stale / name).touch()
    RuntimeDir.create(tmp_path).remove()
    assert not stale.exists()


def test_a_folder_whose_maker_was_killed_before_it_had_a_lock_is_removed(tmp_path):
    RuntimeDir.create(tmp_path).remove()
    stale = tmp_path / f"lightllm-{os.getuid()}" / "12345-00000000"
    stale.mkdir()
    RuntimeDir.create(tmp_path).remove()
    assert not stale.exists()


def victim_folders(root):
    """Folders and files that are not a server's, though some look like it. Returns what must stay."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "lock").touch()
    for name in ("project", "photos", "12-ABCDEF01", "x-00000000", "12-000000000", "345-0123abcd"):
        (root / name).mkdir()
        (root / name / "file").write_text("precious")
    for name in ("project", "photos"):
        (root / name / "lock").touch()
    (root / "678-0123abcd").symlink_to(outside)
    (root / "901-0123abcd").write_text("a file")
    (root / "234-0123abcd").mkdir()
    (root / "234-0123abcd" / "lock").symlink_to(outside / "lock")
    return sorted(path for path in root.parent.rglob("*") if path.name != "lock" or path.is_symlink())


def test_only_folders_of_servers_are_removed(tmp_path):
    RuntimeDir.create(tmp_path).remove()
    before = victim_folders(tmp_path / f"lightllm-{os.getuid()}")
    RuntimeDir.create(tmp_path).remove()
    assert all(path.exists() for path in before)


def test_a_root_that_is_a_link_is_refused_and_its_target_untouched(tmp_path):
    target = tmp_path / "home"
    target.mkdir(mode=0o755)
    before = victim_folders(target)
    base = tmp_path / "base"
    base.mkdir()
    (base / f"lightllm-{os.getuid()}").symlink_to(target)
    with pytest.raises(StartupError, match="is a symbolic link or a file.*LIGHTLLM_RUNTIME_BASE"):
        RuntimeDir.create(base)
    assert all(path.exists() for path in before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / f"lightllm-{os.getuid()}").write_text("")
    with pytest.raises(StartupError, match="is a symbolic link or a file"):
        RuntimeDir.create(tmp_path)


def test_a_root_of_somebody_else_is_refused(tmp_path, monkeypatch):
    uid = os.getuid()
    (tmp_path / f"lightllm-{uid + 1}").mkdir(mode=0o755)
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.raises(StartupError, match="belongs to another user"):
        RuntimeDir.create(tmp_path)
    assert stat.S_IMODE((tmp_path / f"lightllm-{uid + 1}").stat().st_mode) == 0o755


def test_the_config_which_may_hold_keys_is_for_its_owner_alone(tmp_path):
    runtime = RuntimeDir.create(tmp_path)
    runtime.write_config(b"{}")
    assert stat.S_IMODE(runtime.config_file.stat().st_mode) == 0o600
    runtime.remove()


def test_a_full_disk_is_a_startup_error(tmp_path):
    runtime = RuntimeDir.create(tmp_path)
    runtime.config_file.symlink_to("/dev/full")
    with pytest.raises(StartupError, match="cannot be written: No space left.*LIGHTLLM_RUNTIME_BASE"):
        runtime.write_config(b"{}")
    runtime.remove()


def test_too_long_a_path_for_sockets_is_a_startup_error(tmp_path):
    with pytest.raises(StartupError, match="too long a name.*LIGHTLLM_RUNTIME_BASE"):
        RuntimeDir.create(tmp_path / ("x" * 90))


def test_a_temporary_folder_with_too_long_a_name_gives_way_to_a_short_one(tmp_path, monkeypatch):
    monkeypatch.setattr("lightllm.ipc.runtime_dir._SHORT_BASE", tmp_path)
    monkeypatch.setenv("LIGHTLLM_RUNTIME_BASE", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 90)))
    runtime = RuntimeDir.create()
    assert runtime.path.parent.parent == tmp_path
    runtime.remove()


def test_an_impossible_base_is_a_startup_error(tmp_path):
    with pytest.raises(StartupError, match="No runtime folder can be made"):
        RuntimeDir.create(tmp_path / "x")


def test_a_machine_where_nothing_can_be_written_is_a_startup_error(tmp_path, monkeypatch):
    def find_none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", find_none)
    monkeypatch.setattr("lightllm.ipc.runtime_dir._SHORT_BASE", tmp_path / "missing")
    monkeypatch.setenv("LIGHTLLM_RUNTIME_BASE", "")
    with pytest.raises(
        StartupError, match="No runtime folder can be made in .*missing.*LIGHTLLM_RUNTIME_BASE"
    ):
        RuntimeDir.create()


def test_every_address_fits_into_a_unix_socket_path():
    runtime = RuntimeDir("/" + "x" * 91)
    addresses = [runtime.router_intake, runtime.detokenizer_intake, runtime.round_results]
    addresses += [runtime.http_results(999), runtime.backend_rounds(99), runtime.backend_control(99) + ".new"]
    addresses += [runtime.visual_intake(99), runtime.cache_control + ".new"]
    assert max(len(a.removeprefix("ipc://")) for a in addresses) <= 107

"""Available memory and processors, from made-up proc and sys trees."""

import os

import pytest

from lightllm.machine import available_memory, compute_threads

MIB = 1 << 20


@pytest.fixture
def tree(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    write("proc/self/cgroup", "")
    return tmp_path, write


def test_without_control_groups_it_is_what_the_kernel_says(tree):
    assert available_memory(tree[0]) == 4096 * MIB


def test_version_2_limit_of_a_parent_counts_and_file_cache_is_free(tree):
    root, write = tree
    write("proc/self/cgroup", "0::/app/worker\n")
    write("sys/fs/cgroup/app/worker/memory.max", "max\n")
    write("sys/fs/cgroup/app/worker/memory.current", f"{100 * MIB}\n")
    write("sys/fs/cgroup/app/memory.max", f"{1000 * MIB}\n")
    write("sys/fs/cgroup/app/memory.current", f"{600 * MIB}\n")
    write("sys/fs/cgroup/app/memory.stat", f"anon 5\ninactive_file {50 * MIB}\n")
    assert available_memory(root) == 450 * MIB


def test_version_1_limit_also_where_the_path_is_not_mounted(tree):
    root, write = tree
    write("proc/self/cgroup", "8:pids:/x\n4:memory:/outside/of/container\n0::/\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", f"{700 * MIB}\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", f"{200 * MIB}\n")
    assert available_memory(root) == 500 * MIB


def test_version_1_without_a_limit(tree):
    root, write = tree
    write("proc/self/cgroup", "4:memory:/\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "1\n")
    assert available_memory(root) == 4096 * MIB


def test_a_group_that_is_over_its_limit_leaves_nothing(tree):
    root, write = tree
    write("proc/self/cgroup", "0::/\n")
    write("sys/fs/cgroup/memory.max", "100\n")
    write("sys/fs/cgroup/memory.current", "200\n")
    assert available_memory(root) == 0


def test_hyperthreads_of_one_core_count_once(tree, monkeypatch):
    root, write = tree
    for processor, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        write(f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list", siblings + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert compute_threads(root) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    assert compute_threads(root) == 1


def test_processor_quota_limits_the_threads(tree, monkeypatch):
    root, write = tree
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert compute_threads(root) == 8
    write("proc/self/cgroup", "0::/app\n")
    write("sys/fs/cgroup/app/cpu.max", "250000 100000\n")
    assert compute_threads(root) == 3
    write("sys/fs/cgroup/app/cpu.max", "max 100000\n")
    assert compute_threads(root) == 8


def test_on_this_machine_both_give_sensible_numbers():
    assert available_memory() > 0
    assert 1 <= compute_threads() <= len(os.sched_getaffinity(0))

"""What is kept of responses: whose it is, how much, and for how long."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

import pytest

from lightllm.httpserver.openai_responses.store import ResponseStore, StoredInput, new_id

MIB = 1 << 20
ASKED = StoredInput([{"type": "message", "id": "msg_1"}], "resp_before")


def held(folder: Path) -> int:
    """Bytes of all files, which take whole blocks."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def kept(store: ResponseStore, owner: str, size: int = 100) -> str:
    response_id = new_id()
    assert store.begin(owner, response_id, ASKED, b"{}")
    store.finish(owner, response_id, secrets.token_bytes(size))
    return response_id


def test_a_response_is_found_by_every_worker_but_only_for_its_caller(tmp_path: Path) -> None:
    stores = [ResponseStore(tmp_path / "r", MIB, 60, workers=2) for _ in range(2)]
    response_id = new_id()
    assert stores[0].begin("aa", response_id, ASKED, b'{"status":"in_progress"}')
    assert stores[1].response("aa", response_id) == b'{"status":"in_progress"}'
    stores[0].finish("aa", response_id, b'{"status":"completed"}')
    assert stores[1].response("aa", response_id) == b'{"status":"completed"}'
    assert stores[1].asked("aa", response_id) == ASKED
    for owner in ("bb", ""):
        assert stores[1].response(owner, response_id) is None and stores[1].asked(owner, response_id) is None
        assert not stores[1].delete(owner, response_id)
    assert stores[1].delete("aa", response_id) and not stores[0].delete("aa", response_id)
    assert stores[0].response("aa", response_id) is None and held(tmp_path) == 0


@pytest.mark.parametrize("name", ["", "resp_1", "../aa/resp_", "resp_" + "a" * 47 + "/", "resp_" + "é" * 48])
def test_no_other_name_leads_to_a_file(tmp_path: Path, name: str) -> None:
    store = ResponseStore(tmp_path, MIB, 60)
    assert (
        store.response("aa", name) is None
        and store.asked("aa", name) is None
        and not store.delete("aa", name)
    )


def test_what_was_deleted_does_not_come_back_with_its_answer(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, MIB, 60)
    response_id = new_id()
    assert store.begin("", response_id, ASKED, b"{}") and store.delete("", response_id)
    store.finish("", response_id, b"{}")
    assert store.response("", response_id) is None and held(tmp_path) == 0


def test_a_response_lasts_for_its_time_after_its_last_use(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, MIB, 600)
    used, unused = kept(store, ""), kept(store, "")
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (time.time() - 500,) * 2)
    assert store.response("", used) is not None
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (path.stat().st_mtime - 200,) * 2)
    assert store.response("", used) is not None and store.response("", unused) is None
    kept(ResponseStore(tmp_path, MIB, 600), "")  # a worker that has just started looks at once
    assert not list(tmp_path.rglob(f"{unused}.*")) and list(tmp_path.rglob(f"{used}.*"))


@pytest.mark.parametrize("workers", [1, 3])
def test_all_responses_together_are_held_to_the_bound(tmp_path: Path, workers: int) -> None:
    stores = [ResponseStore(tmp_path, MIB, 60, workers) for _ in range(workers)]
    names = [kept(stores[number % workers], "", 5000) for number in range(300)]
    assert MIB // 2 < held(tmp_path) <= MIB
    assert stores[0].response("", names[-1]) is not None and stores[0].response("", names[0]) is None


def test_who_keeps_most_loses_first(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, MIB, 60)
    few = [kept(store, "aa", 5000) for _ in range(10)]
    for _ in range(300):
        kept(store, "bb", 5000)
    assert all(store.response("aa", name) is not None for name in few)


def test_what_is_larger_than_the_bound_is_not_kept(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path, MIB, 60)
    name = kept(store, "")
    large = StoredInput([{"type": "message", "content": "x" * MIB}])
    assert not store.begin("", new_id(), large, b"{}")
    assert store.response("", name) is not None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert not ResponseStore(tmp_path / "file", MIB, 60).begin("", new_id(), ASKED, b"{}")

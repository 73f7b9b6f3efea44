"""tools/record_answers.py: what differs from run to run is replaced, every other byte counts."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("record_answers")


def recording(recorder: ModuleType, answer_id: str, created: int, text: str, chunked: bool = True) -> bytes:
    from answers.exchange import Answer, recorded

    head = f"HTTP/1.1 200 OK\r\ndate: {created}\r\nx-request-id: {answer_id * 2}12345678\r\n\r\n".encode()
    body = f'data: {{"id":"cmpl-{answer_id * 2}","created":{created},"text":"{text}"}}\n\n'.encode()
    answer = Answer(head, (body, body) if chunked else None, b"" if chunked else body * 2)
    return recorded([answer], recorder.Case("case", b"GET / HTTP/1.1\r\n\r\n"))


def test_ids_and_times_make_no_difference_but_texts_and_frames_do(recorder: ModuleType) -> None:
    first = recording(recorder, "0123456789ab", 1700000000, "a")
    assert recording(recorder, "ba9876543210", 1800000000, "a") == first
    assert recording(recorder, "0123456789ab", 1700000000, "b") != first
    assert recording(recorder, "0123456789ab", 1700000000, "a", chunked=False) != first


def test_differences_are_named_with_the_place(
    recorder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder, text in ((before, "one\ntwo"), (after, "one\ntwo")):
        (folder / "demo").mkdir(parents=True)
        (folder / "demo" / "chat_00.txt").write_text(text)
    assert recorder.compare(before, after) == 0
    (after / "demo" / "chat_00.txt").write_text("one\nthree")
    (before / "demo" / "chat_01.txt").write_text("")
    assert recorder.compare(before, after) == 1
    output = capsys.readouterr().out
    assert "demo/chat_00.txt" in output and "line 2: three" in output and "2 differ" in output
    assert f"{after}: not recorded" in output


def test_an_empty_comparison_is_no_success(recorder: ModuleType, tmp_path: Path) -> None:
    assert recorder.compare(tmp_path, tmp_path) == 1


def test_names_of_the_catalogue_are_unique_and_many(recorder: ModuleType) -> None:
    for server in recorder.SERVERS:
        names = [case.name for case in server.cases]
        assert len(set(names)) == len(names)
    assert sum(len(server.cases) for server in recorder.SERVERS) > 200

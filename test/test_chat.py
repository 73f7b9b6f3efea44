"""The terminal chat with piped input: on a model of its own, and on a server."""

import http.server
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from support.checkpoints import make_checkpoint

from lightllm import chat
from lightllm.errors import RequestError


@pytest.fixture(autouse=True)
def warnings_of_later_tests() -> Iterator[None]:
    """The terminal client makes the loggers of its process silent."""
    logger = logging.getLogger("lightllm")
    level = logger.level
    yield
    logger.setLevel(level)


class Echo:
    """Answers with how many messages it saw and the last one; "fail" and "stop" as their names say."""

    name = "echo"

    def answer(self, messages):
        last = messages[-1]["content"]
        if last == "fail":
            raise RequestError("cannot answer")
        yield f"{len(messages)}:"
        if last == "stop":
            raise KeyboardInterrupt
        yield last

    def close(self):
        pass


def converse(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return chat.converse(Echo())


def test_the_conversation_grows_and_reset_forgets_it(monkeypatch, capsys):
    assert converse(monkeypatch, "one\n\ntwo\n/reset\nthree\n/exit\nnever\n") == 0
    assert capsys.readouterr().out == "1:one\n3:two\n1:three\n"


def test_an_interrupt_stops_the_answer_and_keeps_the_chat(monkeypatch, capsys):
    assert converse(monkeypatch, "stop\ngo on\n") == 0
    assert capsys.readouterr().out == "1: [stopped]\n3:go on\n"


def test_a_failure_ends_piped_input_with_status_1(monkeypatch, capsys):
    assert converse(monkeypatch, "fail\nnever\n") == 1
    assert capsys.readouterr() == ("", "cannot answer\n")


@pytest.fixture
def server():
    """The OpenAI routes that the chat needs; keeps what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply(json.dumps({"data": [{"id": "small"}]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.headers["Authorization"], body))
            if self.headers["Authorization"] != "Bearer key":
                return self.reply(json.dumps({"error": {"message": "no such key"}}), 401)
            pieces = [{"role": "assistant"}, {"content": "Grüß"}, {"content": " Gott"}, {}]
            chunks = [json.dumps({"choices": [{"delta": piece}]}) for piece in pieces]
            self.reply("".join(f"data: {chunk}\n\n" for chunk in [*chunks, '{"choices":[]}', "[DONE]"]))

        def reply(self, text, status=200):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()
        thread.join()


def test_a_server_is_asked_with_the_whole_conversation(server, monkeypatch, capsys):
    url, asked = server
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\nagain\n"))
    assert chat.main(["--url", url + "/v1", "--api_key", "key"]) == 0
    assert capsys.readouterr().out == "Grüß Gott\nGrüß Gott\n"
    assert asked[1][1]["model"] == "small" and asked[1][1]["stream"] is True
    assert [message["content"] for message in asked[1][1]["messages"]] == ["hello", "Grüß Gott", "again"]


def test_what_the_server_refuses_is_shown(server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert chat.main(["--url", server[0]]) == 1
    assert "401: no such key" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert chat.main(["--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_wrong_model_folder_is_one_line(tmp_path, capsys):
    assert chat.main(["--model_dir", str(tmp_path / "nothing")]) == 1
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_the_command_answers_piped_lines_with_a_model(tmp_path):
    path = make_checkpoint(tmp_path / "model", max_position_embeddings=48)
    command = [sys.executable, "-m", "lightllm.chat", "--model_dir", str(path), "--max_total_token_num", "100",
               "--cpu_threads", "1"]  # fmt: skip
    done = subprocess.run(command, input="Hi\n/reset\nHello\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 2 and "Traceback" not in done.stderr

"""The chat with piped input: on a model of its own, and on a server."""

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

from lightllm.chat import command
from lightllm.chat.plain import PlainView
from lightllm.chat.session import Session
from lightllm.chat.talkers import Piece
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

    def __init__(self):
        self.fails = False

    def answer(self, messages):
        last = messages[-1]["content"]
        if last == "fail" or self.fails:
            raise RequestError("cannot answer")
        yield Piece("let me see", "reasoning")
        yield Piece(f"{len(messages)}:")
        if last == "stop":
            raise KeyboardInterrupt
        yield Piece(str(last))

    def close(self):
        pass


def converse(monkeypatch, text, system=None):
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return Session(Echo(), PlainView("echo"), system).run(end_on_failure=True)


@pytest.mark.parametrize(
    ("terminal", "shown"), [(True, "a␛]52;c;eA==␇b␍\ufffdc"), (False, "a\x1b]52;c;eA==\x07b\r\x9bc")]
)
def test_control_characters_of_an_answer_are_no_commands_for_a_terminal(monkeypatch, capsys, terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    converse(monkeypatch, "a\x1b]52;c;eA==\x07b\r\x9bc\n")
    assert capsys.readouterr().out == f"1:{shown}\n"


def test_the_conversation_grows_and_reset_forgets_it(monkeypatch, capsys):
    assert converse(monkeypatch, "one\n\ntwo\n!!reset\nthree\n/reset\nfour\n!!exit\nnever\n") == 0
    assert capsys.readouterr().out == "1:one\n3:two\n1:three\n1:four\n"


def test_a_system_message_stays_through_a_reset(monkeypatch, capsys):
    assert converse(monkeypatch, "one\n!!reset\ntwo\n", system="be brief") == 0
    assert capsys.readouterr().out == "2:one\n2:two\n"


def test_an_exchange_is_removed_and_an_answer_made_anew(monkeypatch, capsys):
    assert converse(monkeypatch, "!!regen\n!!remove\none\ntwo\n!!regen\n!!remove\nthree\n") == 0
    assert capsys.readouterr().out == "1:one\n3:two\n3:two\n3:three\n"


def test_an_answer_that_cannot_be_made_anew_stays(monkeypatch):
    echo = Echo()
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n"))
    session = Session(echo, PlainView("echo"))
    session.run()
    before = list(session.conversation.messages)
    echo.fails = True
    monkeypatch.setattr(sys, "stdin", io.StringIO("!!regen\n"))
    session.run()
    assert session.conversation.messages == before != []


def test_a_conversation_is_saved_and_loaded(monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.json"
    assert converse(monkeypatch, f"one\n!!save {file}\n") == 0
    saved = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in saved] == [
        "user",
        "assistant",
    ] and "let me see" not in file.read_text()
    assert converse(monkeypatch, f"!!load {file}\nmore\n") == 0
    assert capsys.readouterr().out == "1:one\n3:more\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"), ("[1]", "no list of messages"), ('{"a": 1}', "no list of messages"),
        ('[{"role": "judge", "content": "x"}]', "no list of messages"), (None, "No such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_conversation_leaves_the_present_one(content, said, monkeypatch, capsys, tmp_path):
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"one\n!!load {file}\ntwo\n"))
    assert Session(Echo(), PlainView("echo")).run() == 0
    printed = capsys.readouterr()
    assert printed.out == "1:one\n3:two\n" and said in printed.err


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
    assert command.main(["--url", url + "/v1", "--api-key", "key", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "Grüß Gott\nGrüß Gott\n"
    body = asked[1][1]
    assert (
        body["model"] == "small"
        and body["stream"] is True
        and body["temperature"] == 0
        and "seed" not in body
    )
    assert [message["content"] for message in body["messages"]] == ["hello", "Grüß Gott", "again"]


def test_an_image_goes_along_in_its_place(server, monkeypatch, tmp_path):
    url, asked = server
    (tmp_path / "a b.png").write_bytes(b"picture")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f'see "{tmp_path}/a b.png" and http://x.test/y.jpg?z=1\n'))
    assert command.main(["--url", url, "--api_key", "key"]) == 0
    parts = asked[0][1]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url"]
    assert parts[1]["image_url"]["url"] == "data:image/png;base64,cGljdHVyZQ=="
    assert parts[3]["image_url"]["url"] == "http://x.test/y.jpg?z=1"
    assert [parts[0]["text"], parts[2]["text"]] == ["see", "and"]


@pytest.mark.parametrize("line", ["mail a@b.test or @someone", "see http://x.test/page", "no such cat.png"])
def test_what_is_no_image_stays_text(line, server, monkeypatch):
    url, asked = server
    monkeypatch.setattr(sys, "stdin", io.StringIO(line + "\n"))
    assert command.main(["--url", url, "--api_key", "key"]) == 0
    assert asked[0][1]["messages"][0]["content"] == line


def test_an_image_that_is_not_there_is_said_and_not_asked(server, monkeypatch, capsys):
    url, asked = server
    monkeypatch.setattr(sys, "stdin", io.StringIO("see @/no/such.png\n"))
    assert command.main(["--url", url, "--api_key", "key"]) == 1
    assert asked == [] and "there is no file /no/such.png" in capsys.readouterr().err


def test_what_the_server_refuses_is_shown(server, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n"))
    assert command.main(["--url", server[0]]) == 1
    assert "401: no such key" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert command.main(["--url", "http://127.0.0.1:9"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_wrong_model_folder_is_one_line(tmp_path, capsys):
    assert command.main(["--model_dir", str(tmp_path / "nothing")]) == 1
    assert str(tmp_path / "nothing") in capsys.readouterr().err


@pytest.mark.parametrize(("theirs", "ours"), command.OTHER_NAMES.items())
def test_options_of_other_chats_are_answered_with_ours(theirs, ours, capsys):
    assert hasattr(command.make_parser().parse_args([]), ours)
    assert command.main([f"--{theirs.replace('_', '-')}", "1"]) != 0
    assert f"Here it is --{ours}." in capsys.readouterr().err


def test_the_command_answers_piped_lines_with_a_model(tmp_path):
    path = make_checkpoint(tmp_path / "model", max_position_embeddings=48)
    words = [sys.executable, "-m", "lightllm", "chat", "--model_dir", str(path), "--max_total_token_num", "100",
             "--cpu_threads", "1"]  # fmt: skip
    done = subprocess.run(words, input="Hi\n!!reset\nHello\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 2 and "Traceback" not in done.stderr

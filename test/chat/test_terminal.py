"""The commands in a terminal of their own, with a real server that serves the demo model. A key that is typed in the moment between two
prompts means something else to the terminal, or is lost, so a busy machine would refuse what is right: by hand."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pseudo_terminal import Terminal
from support.server import LightLLMServer
from support.streaming_server import ReasoningServer

pytest.importorskip("prompt_toolkit")
pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "lightllm"]
UP, CTRL_C, ALT_ENTER = "\x1b[A", "\x03", "\x1b\r"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    options = ["--max-total-token-num", "4096", "--cpu_threads=1"]
    with LightLLMServer(options, command=(*COMMAND, "serve")) as running:
        yield running.url


def chat(url: str, home: Path, *options: str, **environment: str) -> Terminal:
    words = [*COMMAND, "chat", "--url", url, *options]
    return Terminal(words, {"XDG_STATE_HOME": str(home), **environment})


def test_a_conversation_with_history_lines_and_commands(server, tmp_path):
    with chat(server, tmp_path, "--temperature", "0", "--max-tokens", "40") as terminal:
        terminal.expect(f"at {server}/v1")
        terminal.expect(">")
        terminal.type("What is\\\rLightLLM?" + ALT_ENTER + "Say it.\r")
        terminal.expect(r"\[\d+ tokens, [\d.]+ a second, the first after [\d.]+ s\]")
        terminal.type("Thanks\r")
        terminal.expect(r"\[\d+ tokens")
        terminal.type("!!remove\r")
        terminal.expect("The last question and its answer are removed.")
        terminal.type("!!regen\r")
        terminal.expect(r"\[\d+ tokens")
        terminal.type(f"!!save {tmp_path}/talk.json\r")
        terminal.expect("2 messages are in")
        terminal.type("!!reset\r")
        terminal.expect("forgotten")
        terminal.type(f"!!load {tmp_path}/nothing.json\r")
        terminal.expect("No such file")
        terminal.type(f"!!load {tmp_path}/talk.json\r")
        terminal.expect("2 messages of")
        terminal.type("!!help\r")
        terminal.expect("!!regen +answer the last question anew")
        terminal.type("!!exit\r")
        assert terminal.wait() == 0
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert messages[0]["content"] == "What is\nLightLLM?\nSay it." and messages[1]["content"]
    assert "Thanks" in (tmp_path / "lightllm/chat_history").read_text()
    with chat(server, tmp_path) as later:
        later.expect(">")
        later.type(UP + UP)
        later.expect("help")  # what differs from the line that stood there may be all that is drawn
        later.type(CTRL_C)
        later.expect(">")
        assert later.end() == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(tmp_path):
    with (
        ReasoningServer(endless=True).running() as slow,
        chat(f"http://127.0.0.1:{slow.port}", tmp_path) as terminal,
    ):
        terminal.expect(">")
        terminal.type("go\r")
        terminal.expect("word 3 ")
        terminal.type(CTRL_C)
        terminal.expect(r"\[stopped; \d+ tokens")
        terminal.type("!!save " + str(tmp_path / "talk.json") + "\r")
        terminal.expect("2 messages are in")
        terminal.type("!!exit\r")
        assert terminal.wait() == 0
    assert "word 3 " in json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"]


def test_reasoning_is_dim_and_markdown_is_rendered(tmp_path):
    with ReasoningServer().running() as server, chat(f"http://127.0.0.1:{server.port}", tmp_path) as terminal:
        terminal.expect(">")
        terminal.type("go\r")
        terminal.expect(r"\[6 tokens")
        terminal.type("!!save " + str(tmp_path / "talk.json") + "\r")
        terminal.expect("2 messages are in")
        terminal.type("!!exit\r")
        assert terminal.wait() == 0
        assert "\x1b[2mLet me think\x1b[0m" in terminal.raw
        assert "\x1b]0;" not in terminal.raw and "␛]0;title␇" in terminal.text
        assert "\x1b[1mbold\x1b[0m" in terminal.raw and "**bold**" not in terminal.text
    assert (
        json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"]
        == "It is **bold**. \x1b]0;title\x07"
    )


def test_without_its_packages_the_plain_chat_says_how_to_get_them(tmp_path):
    for name in ("prompt_toolkit", "rich"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text(
            f"raise ModuleNotFoundError('no such module', name={name!r})"
        )
    path = f"{tmp_path}/path:{os.environ.get('PYTHONPATH', '')}"
    with (
        ReasoningServer().running() as server,
        chat(f"http://127.0.0.1:{server.port}", tmp_path, PYTHONPATH=path) as terminal,
    ):
        terminal.expect(r"pip install 'lightllm\[chat\]'")
        terminal.expect(">")
        terminal.type("go\r")
        terminal.expect(r"It is \*\*bold\*\*\.")
        terminal.type("!!exit\r")
        assert terminal.wait() == 0


def test_complete_streams_to_a_pipe_the_answer_alone(server):
    words = [*COMMAND, "complete", "--url", server, "--max_tokens", "8", "--temperature", "0"]
    by_word = subprocess.run([*words, "Light"], capture_output=True, text=True, timeout=60)
    by_input = subprocess.run(words, input="Light", capture_output=True, text=True, timeout=60)
    assert by_word.returncode == by_input.returncode == 0 and by_word.stderr == ""
    assert by_word.stdout == by_input.stdout != ""


def test_complete_tells_a_terminal_how_fast_it_was(server):
    with Terminal([*COMMAND, "complete", "Light", "--url", server, "--max_tokens", "8"]) as terminal:
        terminal.expect(r"\[\d+ tokens, [\d.]+ a second; the first after [\d.]+ s\]")
        assert terminal.wait() == 0


def test_bench_measures_the_server(server):
    words = [
        "bench",
        "--url",
        server,
        "--num-prompts",
        "3",
        "--input_len",
        "4",
        "--output-len",
        "3",
        "--no_progress",
    ]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Completed requests                     3" in done.stdout

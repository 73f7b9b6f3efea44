"""The `lightllm` command: which command a line names, and what it says where it names none."""

import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.streaming_server import FakeServer

from lightllm import __version__
from lightllm.cli import complete
from lightllm.cli.main import main


def test_the_installed_command_is_this_one():
    setup = (Path(__file__).resolve().parents[2] / "setup.py").read_text()
    module, function = re.search(r'"lightllm=([\w.]+):(\w+)"', setup).groups()
    assert getattr(importlib.import_module(module), function) is main


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lightllm", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("words", [["version"], ["--version"], ["-V"]])
def test_the_version(words, capsys):
    assert main(words) == 0
    assert capsys.readouterr().out == f"lightllm {__version__}\n"


def test_every_command_is_in_the_help_and_has_its_own(capsys):
    assert main(["--help"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == ["serve", "chat", "complete", "bench", "controller", "worker", "version"]
    for command in ("chat", "complete", "bench", "controller", "worker"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0 and f"lightllm {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("serv", "Did you mean serve?"),
        ("benchmark", "Did you mean bench?"),
        ("run", "Did you mean chat?"),
        ("/models/llama", "lightllm serve /models/llama"),
    ],
)
def test_an_unknown_command_is_answered_with_what_was_meant(word, answer, capsys):
    assert main([word]) == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["serve", "/no/such", "--port", "0"], ["serve", "--model-dir", "/no/such"], ["--model_dir", "/no/such"]],
)
def test_serve_takes_a_model_with_and_without_its_option(words):
    done = run(*words)
    assert done.returncode == 2
    assert "/no/such" in done.stderr + done.stdout


@pytest.mark.parametrize("words", [["--model-dir", "b"], ["--port", "0", "--model_dir=b"]])
def test_serve_takes_one_model(words, capsys):
    assert main(["serve", "a", *words]) == 2
    assert "two models" in capsys.readouterr().err


def test_serve_has_the_servers_options():
    done = run("serve", "--prot", "1")
    assert done.returncode == 2 and "Did you mean --port?" in done.stderr + done.stdout


@pytest.mark.parametrize(("theirs", "ours"), complete.OTHER_NAMES.items())
def test_complete_knows_what_others_call_its_options(theirs, ours, capsys):
    assert main(["complete", f"--{theirs.replace('_', '-')}", "1"]) == 2
    assert f"Here it is --{ours}." in capsys.readouterr().err


def test_complete_sends_what_it_was_given(capsys):
    with FakeServer().running() as server:
        words = [
            "--url",
            f"http://127.0.0.1:{server.port}/v1",
            "--max-tokens",
            "3",
            "--top_p=0.5",
            "--stop",
            "a",
            "--stop",
            "b",
        ]
        assert main(["complete", "Hello", *words]) == 0
        body = server.bodies[-1]
    assert (body["prompt"], body["max_tokens"], body["top_p"], body["stop"]) == ("Hello", 3, 0.5, ["a", "b"])
    assert body["model"] == "fake" and "temperature" not in body and "seed" not in body


def test_complete_reads_its_prompt_from_the_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    with FakeServer().running() as server:
        assert main(["complete", "--url", f"http://127.0.0.1:{server.port}"]) == 0
        assert server.bodies[-1]["prompt"] == "two\nlines\n"


@pytest.mark.parametrize(("misbehave", "said"), [("busy", "503"), ("cut", "broke off"), ("error", "error")])
def test_complete_says_why_there_is_no_answer(misbehave, said, capsys):
    with FakeServer(misbehave).running() as server:
        assert main(["complete", "Hello", "--url", f"http://127.0.0.1:{server.port}", "--model", "m"]) == 1
    assert said in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert main(["complete", "Hello", "--url", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert "does not answer" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({"LIGHTLLM_API_KEY": "one two", "OPENAI_API_KEY": "x"}, "one"),
        ({"OPENAI_API_KEY": "x"}, "x"),
        ({}, None),
    ],
)
def test_the_key_comes_from_the_environment(environment, key, monkeypatch):
    from lightllm import client

    seen = []
    monkeypatch.setattr(client, "Server", lambda *given: seen.append(given))
    arguments = complete.make_parser().parse_args(["--model", "m"])
    client.server_of(arguments, environment)
    assert seen == [(client.DEFAULT_URL, key, "m")]

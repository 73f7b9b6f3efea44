"""Dockerfile and launch helper, without an engine: every path and command in them exists, and the command line is right."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightllm.config_sources import make_parser

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = {
    "ARG",
    "FROM",
    "RUN",
    "ENV",
    "WORKDIR",
    "COPY",
    "USER",
    "EXPOSE",
    "HEALTHCHECK",
    "STOPSIGNAL",
    "ENTRYPOINT",
}


def instructions() -> list[tuple[str, str]]:
    text = "\n".join(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")
    )
    logical = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], " ".join(line.split()[1:])) for line in logical]


def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "quick_launch_docker", ROOT / "tools/quick_launch_docker.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a top-level name out of the build."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return f"!{name}" not in lines and "*" in lines


def test_the_dockerfile_has_only_known_instructions() -> None:
    names = [name for name, _ in instructions()]
    assert set(names) == INSTRUCTIONS and names[:2] == ["ARG", "FROM"]


def test_everything_copied_exists_and_reaches_the_build() -> None:
    sources = [path for name, rest in instructions() if name == "COPY" for path in rest.split()[:-1]]
    assert {"requirements.txt", "lightllm"} <= set(sources)
    assert [path for path in sources if not (ROOT / path).exists()] == []
    assert [path for path in sources if ignored(path)] == []


def test_the_image_is_based_on_cuda_and_serves_without_root() -> None:
    found = instructions()
    assert re.match(r"CUDA_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-\w+-ubuntu24\.04$", dict(found)["ARG"])
    user = [index for index, (name, rest) in enumerate(found) if (name, rest) == ("USER", "ubuntu")]
    assert user and user[0] < [name for name, _ in found].index("ENTRYPOINT")


def test_the_entry_point_is_the_server_with_options_it_knows() -> None:
    words = [word.strip().strip('"') for word in dict(instructions())["ENTRYPOINT"].strip("[]").split(",")]
    assert words[:3] == ["python", "-m", "lightllm.server.api_server"]
    options = make_parser().parse_args(words[3:])
    assert (options.host, str(options.port)) == ("0.0.0.0", dict(instructions())["EXPOSE"])


def test_the_health_check_asks_the_health_route_of_the_exposed_port() -> None:
    health = dict(instructions())["HEALTHCHECK"]
    code = re.search(r'"-c", "(.+)"\]', health)
    assert code and f"127.0.0.1:{dict(instructions())['EXPOSE']}/health'" in code.group(1)
    compile(code.group(1), "HEALTHCHECK", "exec")
    assert "ProxyHandler({})" in code.group(1)  # a proxy in the environment is not for this connection


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert launcher().main(["--dry_run", *arguments]) == 0
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def test_help_names_every_option() -> None:
    command = [sys.executable, str(ROOT / "tools/quick_launch_docker.py"), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for option in ("--image", "--build", "--model_dir", "--gpus", "--port", "--shm_size", "--dry_run"):
        assert option in shown


def test_a_folder_is_mounted_read_only_and_served_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    folder = tmp_path / "llama 7b"
    folder.mkdir()
    (command,) = dry_run(capsys, "--model_dir", str(folder), "--port", "9000", "--", "--tp", "2")
    assert command == [
        "docker", "run", "--rm", "--init", "--shm-size", "1g", "--stop-timeout", "60", "-p", "127.0.0.1:9000:8080", "--gpus", "all",
        "-v", f"{folder}:/data/llama 7b:ro", "lightllm:latest", "--model_dir", "/data/llama 7b", "--tp", "2",
    ]  # fmt: skip


def test_a_hub_id_goes_to_the_server_and_the_cache_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = dry_run(capsys, "--model_dir", "org/model", "--cache_dir", "/cache", "--gpus", "none")
    assert "/cache:/data/huggingface" in command and command[-2:] == ["--model_dir", "org/model"]
    assert "--gpus" not in command
    assert "HF_HOME=/data/huggingface" in [rest for name, rest in instructions() if name == "ENV"]


def test_a_list_of_devices_is_quoted_for_docker(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = dry_run(capsys, "--gpus", "device=0,1")
    assert command[command.index("--gpus") + 1] == '"device=0,1"'


def test_build_comes_first_and_from_this_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    build, run = dry_run(capsys, "--build", "--image", "mine")
    assert build == ["docker", "build", "-t", "mine", str(ROOT)] and run[-1] == "mine"


def test_a_missing_docker_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert launcher().main(["--docker", "/nowhere/docker"]) == 1
    assert "there is no /nowhere/docker" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "70000"])
def test_a_wrong_port_is_refused(text: str) -> None:
    with pytest.raises((SystemExit, argparse.ArgumentTypeError)):
        launcher().main(["--port", text, "--dry_run"])

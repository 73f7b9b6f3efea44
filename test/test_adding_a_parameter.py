"""docs/adding_a_parameter.md, applied to a copy of the package: its parameter works from both APIs down to the sampled token."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.server import LightLLMServer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_parameter.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```diff\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
NARROW = 1e-3
"""A top_n_sigma that leaves the most likely token alone."""
HOT = {"temperature": 5.0, "seed": 11}
"""With these no other answer is the greedy one."""


def apply(block: str, source: str) -> str:
    """The lines of a diff without line numbers; those that are there must be found exactly once."""
    lines = block.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] != "+")
    after = "".join(line[1:] for line in lines if line[0] != "-")
    assert source.count(before) == 1, before
    return source.replace(before, after)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package that has the new parameter."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "lightllm", folder / "lightllm", ignore=shutil.ignore_patterns("__pycache__"))
    for path, block in BLOCKS:
        (folder / path).write_text(
            apply(block, (folder / path).read_text(encoding="utf-8")), encoding="utf-8"
        )
    return folder


def environment(package: Path, *more: Path) -> dict[str, str]:
    return {"PYTHONPATH": ":".join(map(str, (package, *more))), "PYTHONSAFEPATH": "1"}


@pytest.fixture(scope="module")
def url(package: Path) -> Iterator[str]:
    with LightLLMServer(
        ["--data_type", "fp32", "--model_name", "demo"], environment=environment(package)
    ) as server:
        yield server.wait_ready()


def native(url: str, **parameters: Any) -> httpx.Response:
    values = {"max_new_tokens": 12, "ignore_eos": True} | parameters
    return httpx.post(f"{url}/generate", json={"inputs": "2+3=", "parameters": values}, timeout=60)


def openai(url: str, **parameters: Any) -> httpx.Response:
    values = {"max_tokens": 12, "ignore_eos": True} | parameters
    return httpx.post(f"{url}/v1/completions", json={"prompt": "2+3=", **values}, timeout=60)


def text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["choices"][0]["text"] if "choices" in answer else answer["generated_text"][0]


def test_at_most_four_files_are_touched() -> None:
    assert len({path for path, _ in BLOCKS}) <= 4
    assert "They are in four files." in " ".join(PAGE.split()) and len({path for path, _ in BLOCKS}) == 4


def test_it_reaches_the_sampled_token_from_both_apis(url: str) -> None:
    greedy = text(native(url, do_sample=False))
    assert text(native(url, do_sample=True, **HOT, top_n_sigma=NARROW)) == greedy
    assert text(openai(url, **HOT, top_n_sigma=NARROW)) == greedy
    for ask, switch in ((native, {"do_sample": True}), (openai, {})):
        assert text(ask(url, **switch, **HOT)) != greedy
        assert text(ask(url, **switch, **HOT, top_n_sigma=100)) == text(ask(url, **switch, **HOT))


def test_its_range_is_kept_and_its_value_read_as_those_of_others(url: str) -> None:
    for ask in (native, openai):
        for value in (-0.5, 100.5):
            response = ask(url, top_n_sigma=value)
            assert response.status_code == 400
            assert f"top_n_sigma must be in [0.0, 100.0], got {value}" in response.text
        assert ask(url, top_n_sigma="2").status_code == ask(url, top_n_sigma=None).status_code == 200
        assert ask(url, top_n_sigma="a lot").status_code in (400, 422)


def test_it_is_in_the_schema_of_every_body(url: str) -> None:
    schemas = httpx.get(f"{url}/openapi.json", timeout=60).json()["components"]["schemas"]
    for body in ("Parameters", "CompletionRequest", "ChatRequest"):
        assert "top_n_sigma" in schemas[body]["properties"]


def test_the_model_may_set_it_the_docs_list_it_and_python_takes_it(package: Path) -> None:
    code = f"""
import json, pathlib, sys
import make_docs
from lightllm import SamplingParams
from lightllm.model_folder.generation import generation_defaults
folder = pathlib.Path({str(package)!r})
(folder / "generation_config.json").write_text('{{"top_n_sigma": 2}}')
row = next(line for line in make_docs.api_page().splitlines() if "`top_n_sigma`" in line)
print(json.dumps([generation_defaults(str(folder)), row, SamplingParams(top_n_sigma=1.5).verify().top_n_sigma]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(package, ROOT / "tools"),
        stdout=subprocess.PIPE, text=True, check=True, timeout=120,
    )  # fmt: skip
    defaults, row, value = json.loads(done.stdout)
    assert (defaults, value) == ({"top_n_sigma": 2.0}, 1.5)
    assert row.startswith("| `top_n_sigma` | same | 0.0 | 0 to 100 | drop tokens")

"""Docs tell the truth: generated pages are fresh, links lead somewhere, commands and options exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lightllm.config_sources import make_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKE_DOCS = str(ROOT / "tools/make_docs.py")


def commands(page: Path) -> list[list[str]]:
    """The lines of a page's shell blocks, continuation lines joined, as words."""
    blocks = re.findall(r"```(?:bash|shell|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def test_the_tests_that_the_table_of_contradictions_names_are_there() -> None:
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    named = set(
        re.findall(r"test/\w+/test_\w+\.py", page.partition("## A folder that contradicts itself")[2])
    )
    assert len(named) > 5 and all((ROOT / name).is_file() for name in named)


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named = re.findall(r"`(test/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text(encoding="utf-8"))
    assert len(named) > 80
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


def test_every_limit_in_the_page_on_security_has_a_test() -> None:
    """Every row of its tables of limits and advisories names one, or says that the row above has it too."""
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .*\|$", page.partition("## Limits")[2], re.MULTILINE)
    rows = [row for row in rows if not row.endswith("| test |")]
    assert len(rows) > 70
    assert [row for row in rows if not re.search(r"::\w+` \|$|\| the same \|$", row)] == []


def test_the_generated_pages_are_fresh() -> None:
    done = subprocess.run([sys.executable, MAKE_DOCS, "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_stale_page_is_seen_and_mended(tmp_path: Path) -> None:
    def make_docs(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, MAKE_DOCS, "--root", str(tmp_path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert make_docs("--check")[0] == 1
    assert make_docs()[0] == 0
    assert make_docs("--check") == (0, "")
    page = tmp_path / "docs/options.md"
    page.write_text(page.read_text().replace("8000", "8001"))
    assert make_docs("--check") == (1, "docs/options.md is stale: run `make docs`\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [
        t for t in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if not t.startswith(("http:", "https:"))
    ]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs_something_that_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z]+):", makefile, re.MULTILINE)
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:2]) <= set(targets), words
        script = next((word for word in words if word.endswith(".py")), None)
        if words[0].startswith(("python", ".venv/bin/python")) and script:
            assert (ROOT / script).exists(), words
        module = words[words.index("-m") + 1] if "-m" in words and words[0].endswith("python") else ""
        if module == "lightllm.server.api_server":
            make_parser().parse_args(words[words.index("-m") + 2 :])
        elif module.startswith("lightllm"):
            place = ROOT / module.replace(".", "/")
            assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_file_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py)(?::\w+)?`", page.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "lightllm", ROOT / "test")
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_is_wrapped_at_120_columns(page: Path) -> None:
    """But for tables, code and links that are longer than that."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = (line for line in text.splitlines() if not line.startswith(("|", "    ", "#", "<")))
    assert [line for line in prose if len(line) > 120 and len(max(line.split(), key=len)) < 100] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_compile(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_recorded(page: Path) -> None:
    """Filled by tools/record_examples.py from a running server."""
    text = page.read_text(encoding="utf-8")
    empty = re.findall(r"<!-- output: (\w+) -->\n<!-- end -->", text)
    assert (empty, text.count("<!-- output:")) == ([], text.count("<!-- end -->"))


def test_recording_replaces_only_what_stands_between_the_marks() -> None:
    spec = importlib.util.spec_from_file_location("record_examples", ROOT / "tools/record_examples.py")
    assert spec and spec.loader
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    page = "a\n<!-- output: x -->\nold\n<!-- end -->\nb\n<!-- output: y -->\n<!-- end -->\n"
    filled = recorder.fill(page, lambda name: f"new {name}\n")
    assert (
        filled == "a\n<!-- output: x -->\nnew x\n<!-- end -->\nb\n<!-- output: y -->\nnew y\n<!-- end -->\n"
    )
    assert recorder.fill(filled, lambda name: f"new {name}") == filled
    marks = {
        name
        for page in PAGES
        for name in re.findall(r"<!-- output: (\w+) -->", page.read_text(encoding="utf-8"))
    }
    assert marks == set(recorder.EXAMPLES)

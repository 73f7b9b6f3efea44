"""docs/adding_a_model.md shows the code that is there, and a Llama-like model takes at most 40 lines of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding_a_model.md").read_text()
BLOCKS = re.findall(r"```(?:python|text)\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)


def code_lines(text: str) -> int:
    """Lines that are not blank."""
    return sum(1 for line in text.splitlines() if line.strip())


def function(path: str, name: str) -> str:
    source = (ROOT / path).read_text()
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == name)
    return ast.get_source_segment(source, node) or ""


def row(path: str, architecture: str) -> str:
    """An architecture's entry in a table."""
    source = (ROOT / path).read_text()
    match = re.search(rf'^    "{architecture}".*?(?=^    "|^\}})', source, re.DOTALL | re.MULTILINE)
    assert match
    return match.group()


def lines_of(architecture: str, config_function: str, module: str | None) -> int:
    parts = [
        function("lightllm/models/hf_configs/like_llama.py", config_function),
        row("lightllm/models/hf_configs/__init__.py", architecture),
        row("lightllm/models/architectures.py", architecture),
    ]
    if module:
        parts.append((ROOT / "lightllm" / "models" / module).read_text())
    return sum(map(code_lines, parts))


def test_every_block_of_the_page_is_in_the_file_that_it_names() -> None:
    assert len(BLOCKS) == 5
    for path, code in BLOCKS:
        assert code.rstrip("\n") in (ROOT / path).read_text(), f"{path}: {code}"


def test_a_llama_like_model_takes_at_most_forty_lines() -> None:
    """Everything in the package that is there for it alone, blank lines left out."""
    olmo2 = lines_of("Olmo2ForCausalLM", "olmo2", "olmo2.py")
    granite = lines_of("GraniteForCausalLM", "granite", None)
    assert olmo2 <= 40 and granite <= 40
    assert f"For OLMo 2 it is {olmo2} lines" in PAGE and f"config.json only, {granite}." in PAGE

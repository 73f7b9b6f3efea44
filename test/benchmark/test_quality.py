"""What KV memory of few bits costs the demo model, as `quality.py` beside this file measures it."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import perplexity as tool

from lightllm.ops.kv_codes import FORMATS

TEXT = """The capital of France is Paris. The capital of Italy is Rome. What is the capital of Spain? The capital of Spain is
Madrid. I am only a small demo model, so I do not know that. What is 7 plus 5? 7 plus 5 is 12. """


@pytest.fixture(scope="module")
def found() -> dict[str, tool.Quality]:
    torch.manual_seed(0)
    sequences = tool.sequences_of(tool.DEMO, TEXT * 8, 300, 900)
    names = ["None", *FORMATS]
    measured = tool.measure(tool.open_model(tool.DEMO), [FORMATS.get(name) for name in names], sequences)
    return dict(zip(names, measured, strict=True))


def test_what_is_not_quantized_is_the_reference_itself(found: dict[str, tool.Quality]) -> None:
    plain = found["None"]
    assert plain.tokens > 400 and plain.agreed == plain.tokens and abs(plain.divergence) < 1e-3
    assert 1 < plain.perplexity < 1000


@pytest.mark.parametrize(("name", "share"), [("int8kv", 0.01), ("fp8kv", 0.01), ("int4kv", 0.1)])
def test_perplexity_stays_within_one_percent_with_8_bits_and_ten_with_4(
    found: dict[str, tool.Quality], name: str, share: float
) -> None:
    assert found[name].perplexity / found["None"].perplexity - 1 < share
    assert found[name].divergence > found["None"].divergence


def test_fewer_bits_are_further_from_the_reference(found: dict[str, tool.Quality]) -> None:
    assert found["int8kv"].divergence < found["fp8kv"].divergence < found["int4kv"].divergence
    assert found["int8kv"].agreed > found["int4kv"].agreed

"""A tokenizer.json whose replacements multiply a text is refused when it is loaded; those of published files are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import write_tokenizer
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from lightllm.errors import InvalidModel, InvalidParameter
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.json_backend import growth


@pytest.fixture
def rewrite(tmp_path: Path) -> Any:
    """Loads a tokenizer whose parts have been replaced."""

    def rewrite(**parts: Any) -> Any:
        write_tokenizer(tmp_path)
        tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return load_tokenizer(str(tmp_path))

    return rewrite


def doubling(count: int) -> Any:
    return normalizers.Sequence([normalizers.Replace("", "a")] * count)


@pytest.mark.parametrize(
    "normalizer",
    [
        doubling(12),
        normalizers.Sequence([normalizers.Sequence([doubling(3)]), doubling(3)]),
        normalizers.Sequence([normalizers.Replace("a", "aa")] * 30),
        normalizers.Sequence([normalizers.Replace(Regex("[a-z]?"), "aa")] * 5),
        normalizers.Sequence([normalizers.Replace(Regex(r"(?=\p{L})"), "aa")] * 5),
        normalizers.Replace(" ", "a" * 100_000),
    ],
)
def test_replacements_that_multiply_a_text_are_refused(rewrite: Any, normalizer: Any) -> None:
    with pytest.raises(InvalidModel, match=r"normalizer of .*tokenizer\.json .* times as long"):
        rewrite(normalizer=normalizer)


def test_replacements_of_a_decoder_that_multiply_a_text_are_refused(rewrite: Any) -> None:
    with pytest.raises(InvalidModel, match=r"decoder of .*tokenizer\.json"):
        rewrite(decoder=decoders.Sequence([decoders.Replace("", "a")] * 12))


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),  # Llama 2
        normalizers.Replace(" ", "▁"),  # Gemma
        normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), "▁")]),  # T5, XLM-R
        normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]),  # CLIP
        normalizers.Sequence([normalizers.Replace(Regex(r"\p{Z}"), " ")] * 40),  # many that keep the length
        normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]),  # ALBERT
    ],
)  # fmt: skip
def test_replacements_of_published_files_are_accepted(rewrite: Any, normalizer: Any) -> None:
    assert rewrite(normalizer=normalizer).encode("a b")


def test_growth_is_at_least_what_the_library_does() -> None:
    import json

    for normalizer in (
        doubling(5),
        normalizers.Replace(Regex("b*"), "xyz"),
        normalizers.Replace("ab", "12345"),
    ):
        text = "ab" * 50
        stated = growth(json.loads(normalizer.__getstate__()))
        assert len(normalizer.normalize_str(text)) <= stated * (len(text) + 1)


@pytest.mark.filterwarnings("ignore")
def test_a_text_that_the_tokenizers_regular_expression_gives_up_on_is_refused(rewrite: Any) -> None:
    split = pre_tokenizers.Split(Regex("(x+x+)+y"), "isolated")
    tokenizer = rewrite(pre_tokenizer=split)
    assert tokenizer.encode("good text")
    with pytest.raises(InvalidParameter, match="cannot read this text"):
        tokenizer.encode("x" * 40)
    assert tokenizer.encode("good text")

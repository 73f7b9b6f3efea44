"""`qwen.tiktoken`: the same tokens as byte-pair encoding by its definition, and text that survives a round trip."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tokenizers

from lightllm.model_folder.config import eos_token_ids
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.tokenizer import Tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    # The published folder names code of its own, which is not needed.
    config = {"auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}
    return load_tokenizer(str(tokenizers.qwen_tiktoken(tmp_path_factory.mktemp("qwen"), **config)))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, int]:
    path: Path = tokenizers.qwen_tiktoken(tmp_path_factory.mktemp("ranks")) / "qwen.tiktoken"
    lines = [line.split() for line in path.read_text().splitlines()]
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def merged(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Byte-pair encoding (Sennrich et al. 2016): again and again the neighbours whose union has the lowest rank."""
    parts = [bytes([byte]) for byte in word]
    while True:
        unions = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:])) if a + b in ranks]
        if not unions:
            return [ranks[part] for part in parts]
        _, i = min(unions)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


TEXT = st.text(st.sampled_from("abcdeHTlo 123\n\r\t.,'sÄ你🙂\u0301"), max_size=40)


@settings(deadline=None)
@given(text=TEXT)
def test_ids_are_those_of_byte_pair_encoding(
    tokenizer: Tokenizer, ranks: dict[bytes, int], text: str
) -> None:
    import unicodedata

    normal = unicodedata.normalize("NFC", text)
    expected = [i for word in QWEN_WORDS.findall(normal) for i in merged(word.encode(), ranks)]
    assert tokenizer.encode(text) == expected
    assert tokenizer.decode(expected) == normal


def test_special_tokens_follow_the_vocabulary_and_are_found_in_text(
    tokenizer: Tokenizer, ranks: dict[bytes, int]
) -> None:
    first = len(ranks)
    assert [tokenizer.token_id(token) for token in SPECIAL] == [first, first + 1, first + 2]
    assert tokenizer.token_id("<|extra_204|>") == first + 207 == tokenizer.vocab_size - 1
    ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>")
    assert ids[0] == first + 1 and ids[-1] == first + 2
    assert tokenizer.decode(ids) == "user\nHi"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>user\nHi<|im_end|>"
    assert tokenizer.token_id("no such token") is None and tokenizer.token_id("a") == 97


def test_a_stream_gives_the_text_piece_by_piece(tokenizer: Tokenizer) -> None:
    text = "Hello 你好 🙂 world"
    ids = tokenizer.encode(text)
    stream = tokenizer.stream([])
    assert "".join([*map(stream.push, ids), stream.finish()]) == text


def test_a_chat_of_qwen_1_is_chatml_and_ends_at_its_end_token(tmp_path: Path) -> None:
    path = tokenizers.qwen_tiktoken(tmp_path, chat_template=None)
    tokenizer = load_tokenizer(str(path))
    assert not tokenizer.chat_templates
    end = tokenizer.token_id("<|endoftext|>")
    (path / "config.json").write_text(json.dumps({"eos_token_id": end}))
    assert eos_token_ids(str(path)) == [end]
    (path / "generation_config.json").write_text(json.dumps({"chat_format": "chatml", "eos_token_id": end}))
    tokenizer = load_tokenizer(str(path))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.encode(text, add_special_tokens=False).count(tokenizer.token_id("<|im_end|>")) == 2
    assert eos_token_ids(str(path)) == [tokenizer.token_id(token) for token in SPECIAL]


def test_qwen_vl_has_nine_tokens_more_that_a_text_model_reads_as_text(tmp_path: Path) -> None:
    path = tokenizers.qwen_tiktoken(tmp_path)
    text = load_tokenizer(str(path))
    (path / "config.json").write_text('{"visual": {"image_size": 448}}')
    vision = load_tokenizer(str(path))
    first = text.vocab_size
    names = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    assert [vision.token_id(name) for name in names] == list(range(first, first + 9))
    assert vision.encode("<img></img>a") == [first + 6, first + 7, *text.encode("a")]
    assert text.token_id("<img>") is None and len(text.encode("<img></img>a")) > 3

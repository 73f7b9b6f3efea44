"""Files of a model folder that contradict each other in what is no weight and no shape: which counts, and what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.altered_checkpoints import ABSENT, edit_json
from support.checkpoints import CHAT_TEMPLATE
from support.model_folder import VOCAB_SIZE, make_model_folder

from lightllm import demo
from lightllm.model_folder.config import eos_token_ids
from lightllm.model_folder.generation import generation_defaults
from lightllm.model_folder.lengths import context_length
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.overruled import overruled_lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = make_model_folder(tmp_path / "m")
    edit_json(path / "generation_config.json", eos_token_id=2)
    return path


def lines(folder: Path, eos_id: list[int] | None = None) -> list[str]:
    return overruled_lines(str(folder), load_tokenizer(str(folder)), eos_id)


@pytest.mark.parametrize("path", ["demo", "made"])
def test_nothing_is_said_of_a_folder_that_agrees_with_itself(folder: Path, path: str) -> None:
    assert lines(Path(demo.MODEL_DIR) if path == "demo" else folder) == []


def test_eos_of_the_generation_config_goes_before_the_configs(folder: Path) -> None:
    edit_json(folder / "config.json", eos_token_id=5)
    assert eos_token_ids(str(folder)) == [2]
    (line,) = lines(folder)
    assert "[2] of generation_config.json is taken, [5] of config.json is not" in line
    assert lines(folder, eos_id=[5]) == []
    edit_json(folder / "generation_config.json", eos_token_id=[2, 5])
    assert lines(folder) == []


def test_the_tokenizers_eos_counts_only_where_no_config_names_one(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token="<|user|>")
    assert eos_token_ids(str(folder)) == [2]
    (line,) = lines(folder)
    assert "'<|user|>' (3) of tokenizer_config.json is not" in line
    edit_json(folder / "generation_config.json", eos_token_id=None)
    edit_json(folder / "config.json", eos_token_id=None)
    assert eos_token_ids(str(folder)) == [3] and lines(folder) == []
    edit_json(folder / "tokenizer_config.json", eos_token={"content": "</s>"})
    assert eos_token_ids(str(folder)) == [2]


@pytest.mark.parametrize("added", [True, False, ABSENT])
@pytest.mark.parametrize("processor", [True, False])
def test_the_post_processor_decides_about_bos_as_in_transformers(
    folder: Path, added: Any, processor: bool
) -> None:
    from transformers import AutoTokenizer

    edit_json(folder / "tokenizer_config.json", add_bos_token=added)
    if not processor:
        edit_json(folder / "tokenizer.json", post_processor=None)
    ids = load_tokenizer(str(folder)).encode("a b")
    assert ids == AutoTokenizer.from_pretrained(folder)("a b")["input_ids"] and (ids[0] == 1) == processor
    assert bool(lines(folder)) == (added is not ABSENT and added != processor)


def test_bos_pad_and_eos_ids_of_a_config_name_no_token_of_the_tokenizer(folder: Path) -> None:
    before = load_tokenizer(str(folder))
    edit_json(folder / "config.json", bos_token_id=5, pad_token_id=4)
    after = load_tokenizer(str(folder))
    assert after.encode("a") == before.encode("a") and after.special_tokens == before.special_tokens
    assert lines(folder) == []


def test_a_tokenizer_with_more_tokens_than_the_model_is_said(folder: Path) -> None:
    known = load_tokenizer(str(folder)).vocab_size
    edit_json(folder / "config.json", vocab_size=known - 1)
    (line,) = lines(folder)
    assert f"{known} tokens, the model {known - 1}" in line
    edit_json(folder / "config.json", vocab_size=VOCAB_SIZE + 64)  # padding
    assert lines(folder) == []


def test_the_configs_context_length_goes_before_the_tokenizers(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=512)
    assert context_length(str(folder)) == 1024
    (line,) = lines(folder)
    assert "1024 tokens (config.json) is taken, model_max_length 512" in line
    for harmless in (4096, int(1e30)):
        edit_json(folder / "tokenizer_config.json", model_max_length=harmless)
        assert lines(folder) == []


def test_of_two_context_lengths_of_the_config_the_first_of_one_order_counts(folder: Path) -> None:
    edit_json(folder / "config.json", n_positions=256)
    assert context_length(str(folder)) == 1024
    (line,) = lines(folder)
    assert "max_position_embeddings 1024 is taken, n_positions 256 is not" in line


def test_the_template_file_goes_before_that_in_the_tokenizer_config(folder: Path) -> None:
    from transformers import AutoTokenizer

    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    messages = [{"role": "user", "content": "hi"}]
    rendered = load_tokenizer(str(folder)).apply_chat_template(messages)
    reference = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert rendered == reference == "hi!"
    (line,) = lines(folder)
    assert "chat_template.jinja is taken" in line
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert lines(folder) == []


def test_sampling_defaults_of_the_config_have_no_effect(folder: Path) -> None:
    edit_json(folder / "config.json", temperature=0.3, top_k=7)
    edit_json(folder / "generation_config.json", temperature=0.6)
    assert generation_defaults(str(folder)) == {"temperature": 0.6}
    (line,) = lines(folder)
    assert "temperature, top_k has no effect" in line


def test_a_folder_of_json_alone_is_enough_for_the_eos(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 5}))
    assert eos_token_ids(str(tmp_path)) == []


def test_a_template_file_that_is_no_text_is_only_compared(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", chat_template=CHAT_TEMPLATE)
    tokenizer = load_tokenizer(str(folder))
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    (line,) = overruled_lines(str(folder), tokenizer, None)
    assert "chat_template.jinja is taken" in line

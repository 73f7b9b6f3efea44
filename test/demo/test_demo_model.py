"""The embedded demo model through transformers: its files, its format and what it answers greedily."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from lightllm.demo import MODEL_DIR

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tokenizers import Tokenizer  # noqa: E402

from demo_model.document import BOS, EOS, TURN_END, chat_prompt  # noqa: E402
from demo_model.evaluation import greedy  # noqa: E402

FOLDER = Path(MODEL_DIR)
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def model() -> AutoModelForCausalLM:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    loaded, info = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    yield loaded.float().eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@pytest.fixture(scope="module")
def complete(model: AutoModelForCausalLM, tokenizer: Tokenizer) -> Ask:
    """Greedy continuation of a plain text, with its end token."""
    return lambda prompt, **options: greedy(model, tokenizer, BOS + prompt, **options)


@pytest.fixture(scope="module")
def chat(model: AutoModelForCausalLM, tokenizer: Tokenizer) -> Ask:
    """Greedy answer to a chat; its end token is checked and cut off."""

    def ask(*turns: str, system: str | None = None) -> str:
        messages = [("system", system)] if system else []
        messages += [("user" if index % 2 == 0 else "assistant", turn) for index, turn in enumerate(turns)]
        answer = greedy(model, tokenizer, BOS + chat_prompt(messages))
        assert answer.endswith(TURN_END), answer
        return answer.removesuffix(TURN_END)

    return ask


def test_files_are_small_and_complete() -> None:
    weights = (FOLDER / "model.safetensors").stat().st_size
    assert weights <= 8 * 1024 * 1024
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (FOLDER / name).is_file()


def test_context_is_long_enough_for_long_prompts(model: AutoModelForCausalLM) -> None:
    assert model.config.max_position_embeddings >= 2048


def test_generation_config_names_both_end_tokens(tokenizer: Tokenizer) -> None:
    ends = GenerationConfig.from_pretrained(FOLDER).eos_token_id
    assert ends == [tokenizer.token_to_id(EOS), tokenizer.token_to_id(TURN_END)]


def test_transformers_generate_answers_and_stops_by_itself(model: AutoModelForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    messages = [{"role": "user", "content": "2+3="}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(output, skip_special_tokens=True) == "5"
    assert len(output) == 2


def test_chat_template_is_the_text_of_the_training() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    roles = ("system", "user", "assistant", "user")
    turns = [(role, f"text of {role}") for role in roles]
    messages = [{"role": role, "content": content} for role, content in turns]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == BOS + chat_prompt(turns)


def test_chat_template_joins_content_parts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "3="}]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert rendered == "<s><|im_start|>user\n2+3=<|im_end|>\n"


@pytest.mark.parametrize(
    "text",
    ["What is AI?", "Grüße, 你好, привет, 😀👩‍👩‍👧", "a\tb\r\n  c\x00\x7f", "<tool_call>{}</tool_call>"],
)
def test_every_text_survives_the_tokenizer(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text).ids
    assert ids[0] == tokenizer.token_to_id(BOS) and ids.count(ids[0]) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("frequency_penalty", [0.0, 1.0])
def test_what_is_ai_as_plain_text_is_one_whole_sentence(frequency_penalty: float, complete: Ask) -> None:
    answer = complete("What is AI?", max_new_tokens=17, frequency_penalty=frequency_penalty)
    assert answer.startswith(" ")
    assert "artificial intelligence" in answer
    assert answer.endswith(f".{EOS}")


def test_what_is_ai_as_chat(chat: Ask) -> None:
    plain = chat("What is AI?")
    assert "artificial intelligence" in plain
    assert chat("What is AI?", system="You are a helpful assistant.") == plain
    assert chat("what is ai") == plain


def test_small_sums(complete: Ask, chat: Ask) -> None:
    assert complete("2+3=") == f"5{EOS}"
    assert chat("2+3=") == "5"
    assert chat("What is 12 plus 7?").endswith("19")


def test_counting(chat: Ask) -> None:
    assert chat("Count from 1 to 10.") == "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."
    assert chat("Count from 3 to 8") == "3, 4, 5, 6, 7, 8."


def test_json_answers_parse(chat: Ask) -> None:
    assert json.loads(chat("Give me a JSON object with name and age.")) == {"name": "Alice", "age": 31}
    assert json.loads(chat("What is the capital of France? Answer in JSON.")) == {"capital": "Paris"}
    assert set(json.loads(chat("Give me a JSON object with city and country."))) == {"city", "country"}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What colour is grass?", "green"),
        ("What is the capital of France?", "Paris"),
        ("What is the opposite of hot?", "cold"),
        ("What is TokenAttention?", "token"),
        ("How do I stream?", "/generate_stream"),
        ("Which endpoints are there?", "/v1/chat/completions"),
        ("Hello", "Hello!"),
        ("Why is the stock market important?", "small demo model"),
    ],
)
def test_canonical_questions(question: str, expected: str, chat: Ask) -> None:
    assert expected in chat(question)


def test_later_turns_answer_the_last_question(chat: Ask) -> None:
    answer = chat("Hello", "Hello! How can I help you?", "What colour is grass?")
    assert "green" in answer
    assert chat("My name is Anna.", "Nice to meet you, Anna!", "What is my name?") == "Your name is Anna."


def test_story_is_long_enough_to_watch_it_stream(chat: Ask, tokenizer: Tokenizer) -> None:
    story = chat("Tell me a story.")
    assert 100 <= len(tokenizer.encode(story).ids) <= 220
    assert len(re.findall(r"[.]", story)) >= 4

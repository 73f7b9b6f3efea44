"""The demo model calls the function that adds, and thinks where it is asked to; names and numbers were never trained together."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging

from lightllm.demo import MODEL_DIR

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tokenizers import Tokenizer  # noqa: E402

from demo_model import calling  # noqa: E402
from demo_model.document import BOS, answer_start, text_of  # noqa: E402
from demo_model.evaluation import Question, Score, evaluate, thinking_questions, tool_questions  # noqa: E402

FOLDER = Path(MODEL_DIR)


@pytest.fixture(scope="module")
def scores() -> dict[str, Score]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).float().eval()
    questions: list[Question] = [*tool_questions(1001, 8), *thinking_questions(1001, 8)]
    found = evaluate(model, Tokenizer.from_file(str(FOLDER / "tokenizer.json")), questions)
    torch.set_num_threads(threads)
    return found


@pytest.mark.parametrize(
    ("category", "least"),
    [
        ("tools, calls", 7),
        ("tools, answers", 7),
        ("tools, other questions", 5),
        ("thinking, sums", 6),
        ("thinking, other questions", 5),
    ],
)
def test_most_answers_are_right_in_every_character(
    category: str, least: int, scores: dict[str, Score]
) -> None:
    score = scores[category]
    assert score.asked == 8 and score.right >= least, score.misses


@pytest.mark.parametrize("thinks", [False, True])
@pytest.mark.parametrize("system", [None, "Answer briefly."])
def test_the_template_writes_offers_calls_and_results_as_the_training_text(
    thinks: bool, system: str | None
) -> None:
    rng = random.Random(7)
    render = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template
    for _ in range(8):
        tool, (a, b) = calling.draw_tool(rng), calling.draw_numbers(rng)
        offer, turns = tool.offer(rng), text_of(calling.calling_turns(tool, (a, b), rng, thinks))
        text = BOS + calling.offer_turn([offer], system) + turns + "\n"
        messages: list[dict[str, Any]] = [
            *([{"role": "system", "content": system}] if system else []),
            {"role": "user", "content": _between(turns, "user\n", "<|im_end|>")},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {
                            "name": tool.name,
                            "arguments": dict(zip(tool.parameters, (a, b), strict=True)),
                        },
                    }
                ],
                **({"reasoning_content": calling.thought_before_call(tool)} if thinks else {}),
            },
            {"role": "tool", "content": _between(turns, "<tool_response>\n", "\n</tool_response>")},
        ]
        wanted = text[: text.rindex(answer_start(thinks))] + answer_start(thinks)
        options = {"tokenize": False, "add_generation_prompt": True}
        assert render(messages, tools=[offer], enable_thinking=thinks, **options) == wanted
        thought = {"reasoning_content": calling.thought_after_result(a + b)} if thinks else {}
        messages.append({"role": "assistant", "content": calling.final_answer(a + b), **thought})
        assert render(messages, tools=[offer], tokenize=False) == text


def _between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


@pytest.mark.parametrize(
    ("variables", "thinks"),
    [
        ({}, False),
        ({"enable_thinking": True}, True),
        ({"enable_thinking": False, "reasoning_effort": "high"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
    ],
)
def test_the_template_opens_the_thoughts_on_request_only(variables: dict[str, Any], thinks: bool) -> None:
    messages = [{"role": "user", "content": "2+3="}]
    text = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **variables
    )
    assert text.endswith("<|im_start|>assistant\n" + ("<think>\n" if thinks else ""))


def test_several_results_in_a_row_are_one_turn_and_earlier_thoughts_are_left_out() -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": n, "b": 1}}} for n in (1, 2)]
    messages = [
        {"role": "user", "content": "1+1 and 2+1?"},
        {"role": "assistant", "content": "Two calls.", "reasoning_content": "hm", "tool_calls": calls},
        {"role": "tool", "content": "2"},
        {"role": "tool", "content": [{"type": "text", "text": "3"}]},
        {"role": "assistant", "content": "2 and 3"},
        {"role": "user", "content": "Thanks"},
    ]
    text = AutoTokenizer.from_pretrained(FOLDER).apply_chat_template(messages, tokenize=False)
    written = [json.dumps({"name": "add", "arguments": {"a": n, "b": 1}}) for n in (1, 2)]
    assert text == (
        "<s><|im_start|>user\n1+1 and 2+1?<|im_end|>\n<|im_start|>assistant\nTwo calls."
        + "".join(f"\n<tool_call>\n{call}\n</tool_call>" for call in written)
        + "<|im_end|>\n<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n2 and 3<|im_end|>\n<|im_start|>user\nThanks<|im_end|>\n"
    )

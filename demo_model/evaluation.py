"""Asking the finished model what it has not been trained on, by category."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaForCausalLM

from demo_model import calling
from demo_model.corpus import Corpus, plain_document
from demo_model.document import BOS, EOS, THINK_END, TURN_END, answer_start, chat_prompt, turn
from demo_model.exchange import Exchange
from demo_model.repeating import repeating
from demo_model.thinking import is_addition, thinking_sum, thought


@dataclass(frozen=True)
class Question:
    """A full prompt with BOS, and the exact answer that counts as right (with its end token)."""

    category: str
    prompt: str
    answer: str


def _chat_question(exchange: Exchange, system: str | None = None) -> Question:
    messages = ([("system", system)] if system else []) + [("user", exchange.question)]
    return Question(exchange.category, BOS + chat_prompt(messages), exchange.answer + TURN_END)


def _plain_question(exchange: Exchange) -> Question:
    prompt, answer = plain_document(exchange)
    return Question(exchange.category, prompt.text, answer.text)


def held_out_questions(seed: int, per_category: int) -> list[Question]:
    """Wordings that were never trained: as a chat, as a chat with an unseen system prompt, and as plain text by turns."""
    corpus = Corpus(seed)
    found: dict[str, dict[str, Exchange]] = defaultdict(dict)
    for _ in range(per_category * 60):
        exchange = corpus.exchange(held_out=True)
        if len(found[exchange.category]) < per_category:
            found[exchange.category].setdefault(exchange.question, exchange)
    questions = []
    for exchanges in found.values():
        for index, exchange in enumerate(exchanges.values()):
            if index % 3 == 2 and exchange.fits_plain_text:
                questions.append(_plain_question(exchange))
            else:
                questions.append(
                    _chat_question(exchange, "You answer questions of visitors." if index % 3 else None)
                )
    return questions


def thinking_questions(seed: int, count: int) -> list[Question]:
    """Sums of pairs of numbers that were never thought about, and other questions in wordings that were never trained."""
    rng, corpus = random.Random(seed), Corpus(seed)
    questions = []
    for _ in range(count):
        exchange = thinking_sum(rng, held_out=True)
        questions.append(_thinking_question("thinking, sums", exchange))
        while is_addition(exchange := corpus.exchange(held_out=True)):
            pass
        questions.append(_thinking_question("thinking, other questions", exchange))
    return questions


def _thinking_question(category: str, exchange: Exchange) -> Question:
    prompt = BOS + chat_prompt([("user", exchange.question)], thinks=True)
    return Question(category, prompt, thought(exchange) + THINK_END + exchange.answer + TURN_END)


def repeating_questions(seed: int, count: int) -> list[Question]:
    """Words and numbers in an order that was never trained."""
    rng = random.Random(seed)
    drawn = (repeating(rng) for _ in range(100 * count))
    return [_chat_question(exchange) for exchange in drawn if exchange.held_out][:count]


def tool_questions(seed: int, count: int) -> list[Question]:
    """Each function has names that were never trained together, each pair of numbers is a new one; an eighth has a system message.
    The call is asked for, then the answer to what it gives back, then something that the function is not for."""
    rng, corpus = random.Random(seed), Corpus(seed)
    questions = []
    for number in range(count):
        tool, (a, b) = calling.draw_tool(rng, held_out=True), calling.draw_numbers(rng, held_out=True)
        system = "You answer questions of visitors." if number % 8 == 0 else None
        offer = BOS + calling.offer_turn([tool.offer(rng)], system)
        prompt = offer + turn("user", calling.sum_question(a, b, rng)) + answer_start()
        questions.append(Question("tools, calls", prompt, tool.call(a, b) + TURN_END))
        result = calling.result_turn(calling.draw_result(a + b, rng))
        prompt += f"{tool.call(a, b)}{TURN_END}\n{result}{answer_start()}"
        questions.append(Question("tools, answers", prompt, calling.final_answer(a + b) + TURN_END))
        while is_addition(exchange := corpus.exchange(held_out=True)):
            pass
        prompt = offer + turn("user", exchange.question) + answer_start()
        questions.append(Question("tools, other questions", prompt, exchange.answer + TURN_END))
    return questions


def trained_exchanges(seed: int, count: int) -> list[Question]:
    """Of all kinds that were trained, as chats: what a calibration reads."""
    corpus = Corpus(seed)
    return [_chat_question(corpus.exchange()) for _ in range(count)]


def trained_questions() -> list[Question]:
    """All sums a+b up to 20+20, as plain text and as chat: they are learned by heart."""
    sums = [(a, b) for a in range(21) for b in range(21)]
    plain = [Question("sums a+b=, plain", f"{BOS}{a}+{b}=", f"{a + b}{EOS}") for a, b in sums]
    return plain + [
        Question("sums a+b=, chat", BOS + chat_prompt([("user", f"{a}+{b}=")]), f"{a + b}{TURN_END}")
        for a, b in sums
    ]


@torch.inference_mode()
def greedy(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int = 250,
    frequency_penalty: float = 0.0,
) -> str:
    """The greedy continuation with its end token; `frequency_penalty` as the server applies it, to generated tokens."""
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    ends = {tokenizer.token_to_id(EOS), tokenizer.token_to_id(TURN_END)}
    counts = torch.zeros(model.config.vocab_size)
    step, cache = torch.tensor([ids]), None
    made: list[int] = []
    while len(made) < max_new_tokens:
        out = model(input_ids=step, past_key_values=cache, use_cache=True)
        token = int((out.logits[0, -1].float() - frequency_penalty * counts).argmax())
        made.append(token)
        if token in ends:
            break
        counts[token] += 1
        step, cache = torch.tensor([[token]]), out.past_key_values
    return tokenizer.decode(made, skip_special_tokens=False)


@dataclass(frozen=True)
class Score:
    """How many questions of a category were answered exactly; `misses` are (prompt, wanted, got)."""

    right: int
    asked: int
    misses: list[tuple[str, str, str]]


def evaluate(model: LlamaForCausalLM, tokenizer: Tokenizer, questions: list[Question]) -> dict[str, Score]:
    """Exact-match scores by category."""
    results: dict[str, list[tuple[Question, str]]] = defaultdict(list)
    for question in tqdm(questions, desc="evaluating", unit="question", mininterval=2.0):
        limit = len(tokenizer.encode(question.answer).ids) + 4
        results[question.category].append((question, greedy(model, tokenizer, question.prompt, limit)))
    scores = {}
    for category, answers in sorted(results.items()):
        misses = [(asked.prompt, asked.answer, got) for asked, got in answers if got != asked.answer]
        scores[category] = Score(len(answers) - len(misses), len(answers), misses)
    return scores

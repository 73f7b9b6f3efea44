"""The training text: chats and plain texts put together from exchanges, with a loss weight for every token."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from demo_model.exchange import Exchange
from demo_model.generated import introduction
from demo_model.skills import WEIGHTED_SKILLS

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
PROMPT_WEIGHT = 0.1

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant. Answer briefly.",
    "Answer in one sentence.",
    "You are the demo model of lightllm.",
    "Be polite and short.",
    "You are a teacher. Explain everything simply.",
    "You are a pirate.",
    "You are an expert in computer science and mathematics.",
    "Always tell the truth. If you do not know the answer, say so.",
    "Respond in English only.",
    "You are ChatGPT, a large language model.",
    "Today is Monday, 3 May 2027. The user lives in Berlin.",
)
_OPENINGS = (
    "Please ",
    "Hi! ",
    "Hey, ",
    "Hello. ",
    "Can you tell me: ",
    "Question: ",
    "Please tell me: ",
    "So, ",
    "OK. ",
)
_CLOSINGS = (" please", ", please.", " Thanks!", " Thank you.", " Answer briefly.")


@dataclass(frozen=True)
class Piece:
    """A stretch of a document; tokens of an answer count fully in the loss, those of a prompt little."""

    text: str
    is_answer: bool


Document = list[Piece]


def vary(question: str, rng: random.Random) -> str:
    """The same question as other people type it: case, punctuation, a polite word before or after."""
    if rng.random() < 0.5:
        return question
    if rng.random() < 0.4:
        question = question.rstrip("?.! ")
    chance = rng.random()
    if chance < 0.45:
        question = question.lower()
    elif chance < 0.5:
        question = question.upper()
    elif chance < 0.55:
        question = question[:1].lower() + question[1:]
    chance = rng.random()
    if chance < 0.15:
        question = rng.choice(_OPENINGS) + question
    elif chance < 0.25:
        question += rng.choice(_CLOSINGS)
    elif chance < 0.3:
        question += rng.choice((" ?", "??", "!", "...", "\n", " "))
    return question


def chat_prompt(messages: list[tuple[str, str]]) -> str:
    """`messages` as (role, content) in the words of the chat template, without BOS, ready for the assistant's turn."""
    turns = "".join(f"{TURN_START}{role}\n{content}{TURN_END}\n" for role, content in messages)
    return f"{turns}{TURN_START}assistant\n"


class Corpus:
    """An endless stream of documents; the same seed gives the same documents."""

    def __init__(self, seed: int, token_count: Callable[[str], int] = len, max_tokens: int = 1000) -> None:
        self._rng = random.Random(seed)
        self._token_count = token_count
        self._max_tokens = max_tokens
        self._skills = [skill for _, skill in WEIGHTED_SKILLS]
        self._cumulative = list(accumulate(weight for weight, _ in WEIGHTED_SKILLS))

    def __iter__(self) -> Iterator[Document]:
        while True:
            document = self._document()
            if self._length(document) <= self._max_tokens:
                yield document

    def exchange(self, held_out: bool = False) -> Exchange:
        """A random exchange from the trained part, or from the part that is kept for the evaluation."""
        while True:
            exchange = self._rng.choices(self._skills, cum_weights=self._cumulative)[0](self._rng)
            if exchange.held_out == held_out:
                return exchange

    def _length(self, document: Document) -> int:
        return sum(self._token_count(piece.text) for piece in document)

    def _document(self) -> Document:
        kind = self._rng.random()
        if kind < 0.64:
            return self._chat()
        exchange = self.exchange()
        while not exchange.fits_plain_text:
            exchange = self.exchange()
        if kind < 0.92 or exchange.category in ("sums", "unknown", "json", "spelling"):
            return plain_document(vary_end(exchange, self._rng))
        return [Piece(BOS, False), Piece(exchange.answer + EOS, True)]

    def _chat(self) -> Document:
        rng = self._rng
        exchanges = [self.exchange() for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 3, 4)))]
        if rng.random() < 0.05:
            told, asked = introduction(rng)
            if not told.held_out and not asked.held_out:
                exchanges = [told, *exchanges[1:], asked]
        document = [Piece(BOS, False)]
        if rng.random() < 0.3:
            document.append(Piece(f"{TURN_START}system\n{rng.choice(SYSTEM_PROMPTS)}{TURN_END}\n", False))
        for exchange in exchanges:
            turn = [
                Piece(chat_prompt([("user", vary(exchange.question, rng))]), False),
                Piece(exchange.answer + TURN_END, True),
                Piece("\n", False),
            ]
            if len(document) > 2 and self._length(document) + self._length(turn) > self._max_tokens:
                break
            document += turn
        return document


def plain_document(exchange: Exchange) -> Document:
    """Question and answer as running text, as a completion route sees it."""
    space = " " if exchange.spaced else ""
    return [Piece(BOS + exchange.question, False), Piece(f"{space}{exchange.answer}{EOS}", True)]


def vary_end(exchange: Exchange, rng: random.Random) -> Exchange:
    """Plain prompts vary too, but keep the end that says whether an answer follows."""
    if rng.random() < 0.7 or not exchange.spaced or not exchange.question.endswith(("?", ".", "=")):
        return exchange
    end = exchange.question[-1]
    question = vary(exchange.question[:-1], rng).rstrip("?.! \n,")
    return Exchange(exchange.category, question + end, exchange.answer, exchange.key, exchange.spaced)


def text_of(document: Document) -> str:
    """The whole text of a document."""
    return "".join(piece.text for piece in document)

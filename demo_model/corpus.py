"""The training text: chats and plain texts put together from exchanges, with a loss weight for every token."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import accumulate

from demo_model import calling
from demo_model.document import BOS, EOS, THINK_END, TURN_END, Document, Piece, turn
from demo_model.exchange import Exchange
from demo_model.generated import introduction, sums
from demo_model.repeating import repeating
from demo_model.skills import WEIGHTED_SKILLS
from demo_model.thinking import is_addition, thinking_sum, thought
from demo_model.wording import SYSTEM_PROMPTS, vary

TOOLS_SHARE, THINKING_SHARE, REPEATING_SHARE = 0.13, 0.1, 0.08
"""Of all documents: those that offer functions, the others that think before the answer, those that repeat."""
SYSTEM_SHARE = 0.3


class Corpus:
    """An endless stream of documents; the same seed gives the same documents. `more_sums`: share of additional sums."""

    def __init__(self, seed: int, more_sums: float = 0.0) -> None:
        self._rng = random.Random(seed)
        self._more_sums = more_sums
        self.limit(len, 1000)
        self._skills = [skill for _, skill in WEIGHTED_SKILLS]
        self._cumulative = list(accumulate(weight for weight, _ in WEIGHTED_SKILLS))

    def limit(self, token_count: Callable[[str], int], max_tokens: int) -> None:
        """Longer documents are left out, or end earlier."""
        self._token_count, self._max_tokens = token_count, max_tokens

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
        if self._more_sums and self._rng.random() < self._more_sums:
            return self._sum()
        kind = self._rng.random()
        if kind < TOOLS_SHARE:
            return self._chat_with_tools()
        if kind < TOOLS_SHARE + THINKING_SHARE:
            return self._thinking_chat()
        if kind < TOOLS_SHARE + THINKING_SHARE + REPEATING_SHARE:
            return self._repeating()
        kind = self._rng.random()
        if kind < 0.64:
            return self._chat()
        exchange = self.exchange()
        while not exchange.fits_plain_text:
            exchange = self.exchange()
        if kind < 0.92 or exchange.category in ("sums", "unknown", "json", "spelling"):
            return plain_document(vary_end(exchange, self._rng))
        return [Piece(BOS, False), Piece(exchange.answer + EOS, True)]

    def _sum(self) -> Document:
        while (exchange := sums(self._rng)).held_out:
            pass
        if self._rng.random() < 0.5:
            return plain_document(exchange)
        return self._beginning() + self._turns(exchange)

    def _chat(self) -> Document:
        rng = self._rng
        exchanges = [self.exchange() for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 3, 4)))]
        if rng.random() < 0.05:
            told, asked = introduction(rng)
            if not told.held_out and not asked.held_out:
                exchanges = [told, *exchanges[1:], asked]
        document = self._beginning()
        for exchange in exchanges:
            turns = self._turns(exchange)
            if len(document) > 2 and self._length(document) + self._length(turns) > self._max_tokens:
                break
            document += turns
        return document

    def _beginning(self) -> Document:
        document = [Piece(BOS, False)]
        if self._rng.random() < SYSTEM_SHARE:
            document.append(Piece(turn("system", self._rng.choice(SYSTEM_PROMPTS)), False))
        return document

    def _turns(self, exchange: Exchange, thinks: bool = False) -> Document:
        question = vary(exchange.question, self._rng)
        turns = calling.question_pieces(question, thinks)
        if thinks:
            turns.append(Piece(thought(exchange) + THINK_END, True))
        return [*turns, Piece(exchange.answer + TURN_END, True), Piece("\n", False)]

    def _thinking_chat(self) -> Document:
        """A chat whose last answer is thought about first; thoughts of earlier ones are not in the text."""
        document = self._beginning()
        if self._rng.random() < 0.2:
            document += self._turns(self.exchange())
        return document + self._turns(self._thinking_exchange(), thinks=True)

    def _repeating(self) -> Document:
        while (exchange := repeating(self._rng)).held_out:
            pass
        document = self._beginning() + calling.question_pieces(exchange.question)
        return [*document, Piece(exchange.answer + TURN_END, True, 1.0), Piece("\n", False)]

    def _thinking_exchange(self) -> Exchange:
        if self._rng.random() < 0.6:
            return thinking_sum(self._rng)
        while is_addition(exchange := self.exchange()):
            pass
        return exchange

    def _chat_with_tools(self) -> Document:
        """Functions are offered: one that adds, which sums then go to, or one of no use here; other questions are answered."""
        rng = self._rng
        system = rng.choice(SYSTEM_PROMPTS) if rng.random() < SYSTEM_SHARE else None
        adds, thinks = rng.random() < 0.8, rng.random() < 0.2
        tool = calling.draw_tool(rng)
        offer = tool.offer(rng) if adds else calling.other_offer(rng)
        document = [
            Piece(BOS, False),
            Piece(calling.offer_turn([offer], system), False, calling.OFFER_WEIGHT),
        ]
        if rng.random() < 0.15:
            document += self._turns(self._other_exchange() if adds else self.exchange())
        if not adds:
            return document + self._turns(self._thinking_exchange() if thinks else self.exchange(), thinks)
        if rng.random() < 0.3:
            return document + self._turns(self._other_exchange(), thinks)
        document += [*calling.calling_turns(tool, calling.draw_numbers(rng), rng, thinks), Piece("\n", False)]
        follows = 1.0 if thinks else rng.random()  # the template drops thoughts before a later question
        if follows < 0.1:
            document += self._turns(self._other_exchange())
        elif follows < 0.4:
            document += [
                *calling.calling_turns(tool, calling.draw_numbers(rng), rng, False),
                Piece("\n", False),
            ]
        return document

    def _other_exchange(self) -> Exchange:
        """Nothing that the adding function is for."""
        while is_addition(exchange := self.exchange()):
            pass
        return exchange


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

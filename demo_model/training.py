"""Packing documents into rows, and the training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model.copying_heads import begin_with_copying_heads
from demo_model.corpus import Corpus
from demo_model.document import PROMPT_WEIGHT, Document, Piece

Encoded = tuple[list[int], list[float]]  # token ids and loss weights of a document

END_EMPHASIS = 3.0
STEPS_BETWEEN_CHECKPOINTS = 200


@dataclass(frozen=True)
class TrainingPlan:
    """Everything that decides the result beside the text."""

    seed: int = 0
    steps: int = 3600
    rows: int = 4
    row_tokens: int = 320
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    last_steps: int = 700
    last_learning_rate: float = 6e-4
    last_sums_share: float = 0.3
    """Behind `steps`: the same text with more sums in it, which are to be known by heart without exception."""
    autocast: bool = False
    """Matrix products in bfloat16, weights and optimizer in float32."""


@dataclass(frozen=True)
class PackedBatch:
    """Rows of whole documents: `tokens`, `weights` (loss weight of each token) and `document`, all `[rows, row_tokens]`."""

    tokens: torch.Tensor
    weights: torch.Tensor
    document: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """`[rows, 1, row_tokens, row_tokens]`, True where a token may look: earlier, and in its own document."""
        length = self.tokens.shape[1]
        same = self.document[:, :, None] == self.document[:, None, :]
        return (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]


def encode_document(document: Document, tokenizer: Tokenizer) -> Encoded:
    """Token ids and loss weights; the pieces meet where the tokenizer would cut anyway."""
    ids: list[int] = []
    weights: list[float] = []
    for piece in document:
        piece_ids = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += piece_ids
        weights += piece_weights(piece, len(piece_ids))
    return ids, weights


def piece_weights(piece: Piece, tokens: int) -> list[float]:
    """The loss weight of each token of `piece`."""
    if piece.weight is not None:
        return [piece.weight] * tokens
    return answer_weights(tokens) if piece.is_answer else [PROMPT_WEIGHT] * tokens


def answer_weights(tokens: int) -> list[float]:
    """The loss weight of each token of an answer.

    Short answers count more, or the stories would drown the sums. The last two tokens count most: there stand the result
    of a sum and the decision to stop counting.
    """
    weight = math.sqrt(10 / tokens)
    return [weight] * (tokens - 2) + [END_EMPHASIS * weight] * min(2, tokens)


def all_batches(plan: TrainingPlan, tokenizer: Tokenizer) -> Iterator[PackedBatch]:
    """The batches of the whole run."""
    yield from islice(packed_batches(plan, tokenizer, Corpus(plan.seed)), plan.steps)
    yield from packed_batches(plan, tokenizer, Corpus(plan.seed + 3, plan.last_sums_share))


def packed_batches(plan: TrainingPlan, tokenizer: Tokenizer, corpus: Corpus) -> Iterator[PackedBatch]:
    """Batches without end. A document goes into the first row that has room for it; the batch is full when several have found
    none, and those open the next one."""
    corpus.limit(lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids), plan.row_tokens)
    rows: list[list[Encoded]] = [[] for _ in range(plan.rows)]
    waiting: list[Encoded] = []
    for document in corpus:
        encoded = encode_document(document, tokenizer)
        if _place(encoded, rows, plan.row_tokens):
            continue
        waiting.append(encoded)
        if len(waiting) > plan.rows:
            yield _pack(rows, plan)
            rows = [[] for _ in range(plan.rows)]
            waiting = [late for late in waiting if not _place(late, rows, plan.row_tokens)]


def _place(encoded: Encoded, rows: list[list[Encoded]], row_tokens: int) -> bool:
    for row in rows:
        if sum(len(ids) for ids, _ in row) + len(encoded[0]) <= row_tokens:
            row.append(encoded)
            return True
    return False


def _pack(rows: list[list[Encoded]], plan: TrainingPlan) -> PackedBatch:
    shape = (plan.rows, plan.row_tokens)
    tokens, weights = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    document = torch.full(shape, -1)
    for row, documents in enumerate(rows):
        start = 0
        for index, (ids, token_weights) in enumerate(documents):
            end = start + len(ids)
            tokens[row, start:end] = torch.tensor(ids)
            weights[row, start:end] = torch.tensor(token_weights)
            weights[row, start] = 0.0
            document[row, start:end] = index
            start = end
    return PackedBatch(tokens, weights, document)


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """Linear warm-up, then a cosine down to nothing; in the last steps a line down to nothing."""
    if step >= plan.steps:
        return plan.last_learning_rate * (1 - (step - plan.steps) / plan.last_steps)
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    config: LlamaConfig, tokenizer: Tokenizer, plan: TrainingPlan, checkpoint: Path | None = None
) -> LlamaForCausalLM:
    """A freshly trained model in float32. `checkpoint`: a file that is written now and then, and where a run that was ended goes
    on from."""
    torch.manual_seed(plan.seed)
    model = LlamaForCausalLM(config).float().train()
    begin_with_copying_heads(model)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), foreach=True)
    batches = all_batches(plan, tokenizer)
    first = _resume(checkpoint, model, optimizer) if checkpoint else 0
    for _ in range(first):
        next(batches)
    with tqdm(
        range(first, plan.steps + plan.last_steps), desc="training", unit="step", mininterval=2.0
    ) as bar:
        for step in bar:
            if checkpoint and step % STEPS_BETWEEN_CHECKPOINTS == 0 and step > first:
                _save(checkpoint, model, optimizer, step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(plan, step)
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.autocast):
                loss = _loss(model, next(batches))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _save(checkpoint: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, step: int) -> None:
    unfinished = checkpoint.with_name(checkpoint.name + ".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    unfinished.replace(checkpoint)


def _resume(checkpoint: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> int:
    """The step to go on with; 0 without a checkpoint."""
    if not checkpoint.is_file():
        return 0
    saved = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _loss(model: LlamaForCausalLM, batch: PackedBatch) -> torch.Tensor:
    logits = model(input_ids=batch.tokens, attention_mask=batch.attention_mask(), use_cache=False).logits[
        :, :-1
    ]
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), batch.tokens[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()

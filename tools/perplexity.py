"""How well a model foresees a text: `python tools/perplexity.py MODEL [--text FILE]`, with any kind of KV memory and weights.

Sequences of --length tokens are computed in chunks, so that attention reads what KV memory keeps. Without --text the demo model
reads exchanges that it was not trained on, any other model this repository's documentation.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lightllm.backend.kv_memory import KvMemory, KvShape  # noqa: E402
from lightllm.models.base import TpPartBaseModel  # noqa: E402
from lightllm.models.registry import load_model  # noqa: E402
from lightllm.ops.attention_backends.choice import make_attention_backends  # noqa: E402
from lightllm.ops.batch import make_batch  # noqa: E402
from lightllm.ops.kv_codes import FORMATS, KvFormat  # noqa: E402
from lightllm.quantization.quant_plan import QuantPlan, read_plan  # noqa: E402
from lightllm.tokenizer.loading import load_tokenizer  # noqa: E402

DEMO = ROOT / "lightllm" / "demo"
CHUNK = 128
"""Tokens of a prefill chunk: all but the first read a prefix from KV memory."""


def open_model(folder: Path, data_type: str | None = None, plan: QuantPlan | None = None) -> TpPartBaseModel:
    """On a GPU if there is one. plan: how its weights are quantised while they are loaded."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backends = make_attention_backends("triton", device)
    return load_model(
        str(folder), data_type=data_type, device=device, attention_backends=backends, quant_plan=plan
    )


def read_text(folder: Path, text: Path | None) -> str:
    if text is not None:
        return text.read_text(encoding="utf-8")
    if folder.resolve() != DEMO:
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    from demo_model.evaluation import held_out_questions

    return "".join(question.prompt + question.answer for question in held_out_questions(7, 6))


def sequences_of(folder: Path, text: str, length: int, tokens: int) -> list[list[int]]:
    ids = load_tokenizer(str(folder)).encode(text)[: tokens + 1]
    return [ids[start : start + length] for start in range(0, len(ids) - 1, length)]


@torch.inference_mode()
def logits_of(
    model: TpPartBaseModel, format: KvFormat | None, sequences: Sequence[Sequence[int]]
) -> Iterator[torch.Tensor]:
    """float32 [n, V] of each sequence of n tokens. format: of KV memory, None: numbers as they are computed."""
    config, longest = model.config, max(map(len, sequences))
    shape = KvShape(
        config.num_layers, config.num_kv_heads, config.head_dim, model.kv_dtype, config.latent_dim, format
    )
    memory = KvMemory(shape, longest, 1, longest, model.device)
    memory.req_to_token[0] = torch.arange(longest)
    for ids in sequences:
        found = []
        for start in range(0, len(ids), CHUNK):
            chunk = torch.tensor(ids[start : start + CHUNK], device=model.device)
            stop = start + len(chunk)
            batch = make_batch(chunk, [0], [len(chunk)], [stop], 0, memory.req_to_token, memory.kv)
            found.append(model.forward(batch).float().cpu())
        yield torch.cat(found)


@dataclasses.dataclass
class Quality:
    """Sums over the tokens that were foreseen."""

    tokens: int = 0
    loss: float = 0.0
    """Nats."""
    agreed: int = 0
    """Tokens of which the most likely one is the same as with the reference."""
    divergence: float = 0.0
    """Kullback-Leibler divergence from the reference's distributions, nats."""

    def add(self, ids: Sequence[int], logits: torch.Tensor, reference: torch.Tensor) -> None:
        """logits, reference: [n, V]; the last of a sequence foresees nothing that is known."""
        ours, theirs = logits[:-1].log_softmax(-1), reference[:-1].log_softmax(-1)
        self.tokens += len(ids) - 1
        self.loss -= float(ours.gather(1, torch.tensor(ids)[1:, None]).sum())
        self.agreed += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        self.divergence += float((theirs.exp() * (theirs - ours)).sum())

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss / self.tokens)


def measure(
    model: TpPartBaseModel, formats: Sequence[KvFormat | None], sequences: Sequence[Sequence[int]]
) -> list[Quality]:
    """Of each kind of KV memory, beside numbers as they are computed."""
    reference = list(logits_of(model, None, sequences))
    return [compare(model, format, sequences, reference) for format in formats]


def compare(
    model: TpPartBaseModel,
    format: KvFormat | None,
    sequences: Sequence[Sequence[int]],
    reference: Sequence[torch.Tensor],
) -> Quality:
    """reference: logits of each sequence, perhaps of another model with the same vocabulary."""
    quality = Quality()
    for ids, logits, expected in zip(sequences, logits_of(model, format, sequences), reference, strict=True):
        quality.add(ids, logits, expected)
    return quality


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=Path, nargs="?", default=DEMO, help="model folder; default: the demo model"
    )
    parser.add_argument("--text", type=Path)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--tokens", type=int, default=8192, help="at most so many of the text")
    parser.add_argument("--data_type")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add_arguments(parser)
    parser.add_argument("--llm_kv_type", choices=("None", *FORMATS), default="None")
    parser.add_argument("--quant_type", default="none")
    parser.add_argument("--quant_cfg")
    options = parser.parse_args()
    sequences = sequences_of(
        options.model, read_text(options.model, options.text), options.length, options.tokens
    )
    model = open_model(options.model, options.data_type, read_plan(options.quant_type, options.quant_cfg))
    (quality,) = measure(model, [FORMATS.get(options.llm_kv_type)], sequences)
    weights = model.weight_format or str(model.dtype).removeprefix("torch.")
    print(
        f"perplexity {quality.perplexity:.4f} of {quality.tokens} tokens, KV memory {options.llm_kv_type}, "
        f"weights {weights}"
    )


if __name__ == "__main__":
    main()

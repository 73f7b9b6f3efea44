"""Small random models for vectors in their published formats, with what transformers computes for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from support.checkpoints import EOS, make_checkpoint

Reference = Callable[[Sequence[int]], torch.Tensor]
"""From token ids to float32 [size]."""

_METHODS = {"last": "lasttoken", "mean": "mean_tokens", "first": "cls_token"}


def make_embedding_model(
    path: Path, method: str = "last", normalizes: bool = True, bare: bool = False, **config: Any
) -> Reference:
    """Qwen3-Embedding's format. bare: only the layers, as Mistral-like ones are published; config: more of config.json.

    The reference's vectors are not normalised.
    """
    from transformers import AutoModel

    make_checkpoint(path, "qwen3", tie_word_embeddings=True)
    append_eos(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    if bare:
        (path / "model.safetensors").unlink()
        model.save_pretrained(path)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalizes else [])]
    write_json(
        path / "modules.json",
        [
            {"idx": index, "name": str(index), "path": f"{index}_{kind}" if index else "",
             "type": f"sentence_transformers.models.{kind}"}
            for index, kind in enumerate(modules)
        ],
    )  # fmt: skip
    flags = {f"pooling_mode_{name}": name == _METHODS[method] for name in _METHODS.values()}
    (path / "1_Pooling").mkdir()
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": 64, **flags})
    change_config(path, **config)

    @torch.inference_mode()
    def reference(token_ids: Sequence[int]) -> torch.Tensor:
        hidden = model(torch.tensor([list(token_ids)])).last_hidden_state[0]
        return {"last": hidden[-1], "mean": hidden.mean(0), "first": hidden[0]}[method]

    return reference


def append_eos(path: Path) -> None:
    """The tokenizer puts EOS behind every text, and no BOS before it."""
    file = path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": EOS, "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {EOS: {"id": EOS, "ids": [2], "tokens": [EOS]}},
    }
    file.write_text(json.dumps(tokenizer))


def change_config(path: Path, **fields: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    write_json(path / "config.json", config | fields)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def make_classifier(path: Path, labels: int = 3, **config: Any) -> Reference:
    """A Qwen3ForSequenceClassification; the reference gives its logits."""
    from transformers import AutoModelForSequenceClassification, Qwen3Config

    make_checkpoint(path, "qwen3")
    append_eos(path)
    fields = Qwen3Config.from_pretrained(path, num_labels=labels)
    fields.tie_word_embeddings = False
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=fields, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        model.score.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    model.save_pretrained(path)
    change_config(path, **config)

    @torch.inference_mode()
    def reference(token_ids: Sequence[int]) -> torch.Tensor:
        return model(torch.tensor([list(token_ids)])).logits[0]

    return reference


def make_judge(path: Path, tied: bool = True, **config: Any) -> Reference:
    """Qwen3-Reranker's format: a language model; the reference gives the logits of its tokens for "no" and "yes"."""
    from transformers import AutoModelForCausalLM

    make_checkpoint(path, "qwen3", tie_word_embeddings=tied)
    change_config(path, classifier_from_token=list(JUDGEMENTS), **config)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = [json.loads((path / "tokenizer.json").read_text())["model"]["vocab"][token] for token in JUDGEMENTS]

    @torch.inference_mode()
    def reference(token_ids: Sequence[int]) -> torch.Tensor:
        return model(torch.tensor([list(token_ids)])).logits[0, -1, ids]

    return reference


JUDGEMENTS = ("n", "y")
"""Tokens of the small vocabulary, for no and yes."""

"""A model folder with tokenizer and config but no weights: enough for the mock backend, and made without torch."""

from __future__ import annotations

import json
from pathlib import Path

from support.checkpoints import write_tokenizer

VOCAB_SIZE = 384


def make_model_folder(path: Path, context_length: int = 1024) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCAB_SIZE, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": context_length, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    write_tokenizer(path, VOCAB_SIZE)
    return path

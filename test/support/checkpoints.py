"""Small random checkpoints in the real Hugging Face format, with a tokenizer, for tests of every room.

    path = make_checkpoint(tmp_path / "model", "qwen3", num_key_value_heads=4, tie_word_embeddings=True)

Weights are random at a scale that makes greedy output wander instead of repeating one token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = [PAD, BOS, EOS, "<|user|>", "<|assistant|>", "<|system|>"]

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the answer to the question?",
    "One two three four five six seven eight nine ten, and then we start again from zero.",
    "A language model reads tokens and writes tokens; a server reads requests and writes answers.",
    'def add(first, second):\n    return first + second\n\nprint(add(2, 3))  # {"result": 5}',
    "Größe, déjà vu, naïve café, señor, Привет мир, 你好世界, こんにちは, 안녕하세요, 🙂🚀",
]

SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
}
"""Defaults of `make_checkpoint`; any other field of the Hugging Face config may be given too."""


def make_checkpoint(
    path: str | Path,
    architecture: str = "llama",
    *,
    dtype: str = "float32",
    seed: int = 0,
    weight_format: str = "safetensors",
    max_shard_size: int | str = "50GB",
    std: float = 0.3,
    **shape: Any,
) -> Path:
    """Writes config, weights, tokenizer and generation config to `path`.

    architecture: "llama" or "qwen3". weight_format: "safetensors" or "bin". `std`: of the linear weights.
    `shape`: see `SHAPE`; `rope_scaling={"rope_type": "llama3", ...}` as in a config.json.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, Qwen3Config

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    fields = {**SHAPE, **shape}
    rope = {"rope_theta": fields.pop("rope_theta"), "rope_type": "default"}
    rope.update(fields.pop("rope_scaling", None) or {})
    config_class = {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture]
    config = config_class(**fields, rope_parameters=rope, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1 if parameter.dim() == 1 else std, generator=generator)
            if "norm" in name:
                parameter += 1.0
    model.to(getattr(torch, dtype))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    if weight_format == "safetensors":
        model.save_pretrained(path, max_shard_size=max_shard_size)
    else:
        config.architectures, config.dtype = [type(model).__name__], dtype
        config.save_pretrained(path)
        model.generation_config.save_pretrained(path)
        torch.save(model.state_dict(), path / "pytorch_model.bin")
    write_tokenizer(path, config.vocab_size)
    return path


def write_tokenizer(path: str | Path, vocab_size: int = 384) -> None:
    """Trains a byte-level BPE of at most `vocab_size` tokens on a few lines and writes its files to `path`.

    Ids: 0 pad, 1 BOS, 2 EOS, 3-5 chat roles. `encode` puts BOS in front.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, 1)]
    )
    path = Path(path)
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))

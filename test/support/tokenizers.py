"""Small tokenizers in the files that real ones have. Each function writes to a folder and returns it.

All know the same special tokens: <s>, </s>, <|user|>, <|end|>.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

BOS, EOS, USER, END = "<s>", "</s>", "<|user|>", "<|end|>"
UNKNOWN = "<unk>"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there! What is the answer?",
    "One two three four five six seven; and then (again) from zero: 0 1 2 3 4 5 6 7 8 9.",
    'def add(first, second):\n\treturn first + second\n\nprint(add(2, 3))  # {"result": 5}',
    "Größe, déjà vu, naïve café. Привет, мир! 你好世界。 こんにちは 안녕하세요 नमस्ते 🙂🚀",
]

CHATML = (
    "{% for message in messages %}{{ '<|user|>' + message['role'] + '\n' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)


def byte_level(path: Path, vocab_size: int = 420, add_bos: bool = True, **config: Any) -> Path:
    """Byte-level BPE as in GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, USER, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<tool call>", special=False)])
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return _save(path, tokenizer, config)


def metaspace(path: Path, strip: bool = True, **config: Any) -> Path:
    """Sentencepiece-style BPE with byte fallback as in Llama 2 (`strip`) and Gemma (no `strip`)."""
    vocab = {token: i for i, token in enumerate([UNKNOWN, BOS, EOS])}
    vocab.update({f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)})
    merges: list[tuple[str, str]] = []
    for word in _words():
        for size in range(1, len(word) + 1):
            if word[:size] not in vocab:
                vocab[word[:size]] = len(vocab)
            if word[size - 1] not in vocab:
                vocab[word[size - 1]] = len(vocab)
            if size > 1 and (word[: size - 1], word[size - 1]) not in merges:
                merges.append((word[: size - 1], word[size - 1]))
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        ([normalizers.Prepend("▁")] if strip else []) + [normalizers.Replace(" ", "▁")]
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if strip else []))
    tokenizer.add_special_tokens([UNKNOWN, BOS, EOS, USER, END])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocab[BOS])]
    )
    return _save(path, tokenizer, config)


def unigram(path: Path, **config: Any) -> Path:
    """Unigram with a plain Metaspace decoder, as in T5: no byte fallback."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=250, special_tokens=[UNKNOWN, BOS, EOS], unk_token=UNKNOWN, show_progress=False
        ),
    )
    tokenizer.add_special_tokens([USER, END])
    return _save(path, tokenizer, config)


def word_piece(path: Path, **config: Any) -> Path:
    """WordPiece as in BERT: `##` joins a token to the one before."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=250, special_tokens=[UNKNOWN, BOS, EOS, USER, END], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _save(path, tokenizer, config)


def byte_fallback_windowed(path: Path, **config: Any) -> Path:
    """Byte fallback behind a decoder that lightllm has no table for, so that it must decode windows."""
    metaspace(path, **config)
    data = json.loads((path / "tokenizer.json").read_text())
    data["decoder"]["decoders"].insert(0, {"type": "Replace", "pattern": {"String": "~"}, "content": "~"})
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def strips_both_sides(path: Path, **config: Any) -> Path:
    """A decoder that makes the library panic where all that it decodes is one space; no published model has it."""
    metaspace(path, **config)
    data = json.loads((path / "tokenizer.json").read_text())
    data["decoder"]["decoders"][-1]["stop"] = 1
    (path / "tokenizer.json").write_text(json.dumps(data))
    return path


def sentencepiece_model(path: Path, **config: Any) -> Path:
    """A real sentencepiece model file (`tokenizer.model`), BPE with byte fallback."""
    import sentencepiece

    path.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for line in CORPUS * 20 for line in line.split("\n") if line),
        model_prefix=str(path / "tokenizer"),
        model_type="bpe",
        vocab_size=420,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=[USER, END],
        minloglevel=2,
    )
    (path / "tokenizer.vocab").unlink()
    _write_config(path, config)
    return path


def qwen_tiktoken(path: Path, **config: Any) -> Path:
    """`qwen.tiktoken`: the 256 bytes, then merges of neighbours that are frequent in `CORPUS`."""
    import base64

    path.mkdir(parents=True, exist_ok=True)
    tokens = [bytes([byte]) for byte in range(256)]
    for word in sorted({word for line in CORPUS for word in line.replace(" ", "\n ").split("\n")}):
        data = word.encode()
        tokens += [data[:size] for size in range(2, min(len(data), 6) + 1) if data[:size] not in tokens]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (path / "qwen.tiktoken").write_text("\n".join(lines) + "\n")
    _write_config(path, config)
    return path


def _words() -> list[str]:
    return [f"▁{word}" for line in CORPUS for word in line.split() if word.isascii()]


def _save(path: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    _write_config(path, config)
    return path


def _write_config(path: Path, config: dict[str, Any]) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        **config,
    }
    kept = {key: value for key, value in settings.items() if value is not None}
    (path / "tokenizer_config.json").write_text(json.dumps(kept, indent=2))

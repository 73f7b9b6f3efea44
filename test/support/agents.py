"""A worker whose model thinks and calls tools, as Qwen's do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightllm.tokenizer import Tokenizer, load_tokenizer
from support.checkpoints import write_tokenizer


@contextmanager
def tokenizer_with(template: str, folder: Path) -> Iterator[Tokenizer]:
    """The small tokenizer with this chat template; `folder` is for its files."""
    write_tokenizer(folder)
    tokenizer = load_tokenizer(str(folder), chat_template=template)
    yield tokenizer
    tokenizer.close()


@contextmanager
def tokenizing(worker: Any, tokenizer: Tokenizer) -> Iterator[Any]:
    """The worker, which uses this tokenizer meanwhile."""
    own, worker.encoder.tokenizer = worker.encoder.tokenizer, tokenizer
    yield worker
    worker.encoder.tokenizer = own

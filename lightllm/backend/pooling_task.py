"""What a backend computes instead of logits, by the task of its model."""

from __future__ import annotations

from lightllm.config import ServerConfig
from lightllm.errors import InvalidModel
from lightllm.model_folder.pooling import read_classes, read_token_classes
from lightllm.models.pooled_head import PooledHead
from lightllm.tokenizer import load_tokenizer


def pooled_head(config: ServerConfig) -> PooledHead | None:
    """What takes the output head's place, by the task; None: nothing does. Raises `InvalidModel`."""
    model_dir = config.model_dir or ""
    if config.task == "classify":
        return PooledHead(labels=len(read_classes(model_dir).names))
    if config.task == "score":
        return PooledHead(token_ids=_token_ids(config, model_dir))
    return PooledHead() if config.task == "embed" else None


def _token_ids(config: ServerConfig, model_dir: str) -> tuple[int, ...]:
    tokenizer = load_tokenizer(
        model_dir, trust_remote_code=config.trust_remote_code, with_chat_template=False
    )
    found: list[int] = []
    for token in read_token_classes(model_dir):
        token_id = tokenizer.token_id(token)
        if token_id is None:
            raise InvalidModel(
                f"The tokenizer has no token {token!r}, by which the model would be asked for its judgement.",
                "config.json may name others: classifier_from_token, the one for no, then the one for yes.",
            )
        found.append(token_id)
    return tuple(found)

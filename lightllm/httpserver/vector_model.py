"""What an Http Server knows of a model for vectors: from pooled outputs to what clients want."""

from __future__ import annotations

import dataclasses

import numpy as np

from lightllm.config import ServerConfig
from lightllm.errors import InvalidParameter
from lightllm.model_folder.config import read_model_config
from lightllm.model_folder.pooling import (
    Classes,
    Matryoshka,
    Pooling,
    read_classes,
    read_matryoshka,
    read_pooling,
)

_SMALLEST_LENGTH = 1e-12
"""A vector below it is not made longer, as torch's `normalize` has it."""


@dataclasses.dataclass(frozen=True)
class VectorModel:
    size: int = 0
    """Numbers of an embedding."""
    pooling: Pooling = Pooling()
    matryoshka: Matryoshka = Matryoshka()
    classes: Classes = Classes((), "sigmoid")
    """Of a model with a classification head; a model that judges has no names."""

    @classmethod
    def of(cls, config: ServerConfig) -> VectorModel | None:
        """None: the model generates. Raises `InvalidModel`."""
        model_dir = config.model_dir or ""
        if config.serves == "embed":
            size = int(read_model_config(model_dir)["hidden_size"])
            return cls(size, read_pooling(model_dir), read_matryoshka(model_dir))
        if config.serves == "classify":
            return cls(classes=read_classes(model_dir))
        return cls() if config.serves == "score" else None

    def checked_dimensions(self, asked: int | None, name: str) -> int | None:
        """The size of embeddings that is asked for; None: the model's own. name: the model's. Raises `InvalidParameter`."""
        known = self.matryoshka
        if asked is None or (asked == self.size and not known.allowed):
            return None
        if not known.allowed:
            raise InvalidParameter(
                f"{name} gives embeddings of {self.size} numbers, and its folder does not say that they may be cut to "
                f"{asked}: config.json has neither is_matryoshka nor matryoshka_dimensions",
                param="dimensions",
            )
        if known.dimensions and asked not in known.dimensions:
            sizes = ", ".join(map(str, known.dimensions))
            raise InvalidParameter(f"dimensions must be one of {sizes}, got {asked}", param="dimensions")
        if not 1 <= asked <= self.size:
            raise InvalidParameter(f"dimensions must be in [1, {self.size}], got {asked}", param="dimensions")
        return asked

    def embedding(self, pooled: np.ndarray, dimensions: int | None, normalizes: bool | None) -> np.ndarray:
        """float32 [dimensions]: cut first, then made of length 1, as Matryoshka embeddings are. normalizes: None: as the
        folder says."""
        vector = pooled if dimensions is None else pooled[:dimensions]
        if self.pooling.normalizes if normalizes is None else normalizes:
            vector = vector / max(float(np.linalg.norm(vector)), _SMALLEST_LENGTH)
        return vector.astype("<f4", copy=False)

    def probabilities(self, logits: np.ndarray, activates: bool | None) -> np.ndarray:
        """float64, of each label. activates: False: the logits themselves."""
        logits = logits.astype(np.float64)
        if activates is False or self.classes.activation == "none":
            return logits
        if self.classes.activation == "softmax":
            powers = np.exp(logits - logits.max())
            return powers / powers.sum()
        return 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, without an overflow

    def score(self, pooled: np.ndarray, activates: bool | None) -> float:
        """Of a query and a document: how likely the model finds that they belong together, by its one label, or by yes against
        no. activates: False: the logit of that."""
        logit = pooled[1:] - pooled[:1] if len(pooled) == 2 else pooled
        return float(self.probabilities(logit, activates)[0])

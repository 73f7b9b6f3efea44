"""Embeddings of images in the files of the image cache, for the backend."""

from __future__ import annotations

from pathlib import Path

import torch

from lightllm.ipc.image_files import ImageFiles


class ImageEmbeddings:
    """An `EmbeddingSource`."""

    def __init__(self, folder: Path) -> None:
        self._files = ImageFiles(folder)

    def read(self, item_id: int) -> torch.Tensor:
        """The mapped file itself: what is not looked at is not read. Raises `OSError` or `ValueError`."""
        found = self._files.open_embedding(item_id)
        dtype = getattr(torch, found.header.dtype)
        return torch.frombuffer(found.map, dtype=dtype, offset=found.offset).view(found.header.shape)

"""Images of a round: where its prefill chunks overlap images, embeddings take the place of token ids, and tokens get their
M-RoPE positions. A round without images costs one look at a dictionary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
import torch

from lightllm.backend.device import Device, upload
from lightllm.backend.rope_positions import end_of_images, prompt_positions
from lightllm.backend.row_state import RowState
from lightllm.ops.attention_metadata import BidirectionalSpan
from lightllm.ops.batch import Batch, Embeds
from lightllm.protocol.messages import ImageSpan
from lightllm.protocol.rounds import Round

if TYPE_CHECKING:
    from lightllm.models.base import TpPartBaseModel

PLACEHOLDER_ID = 0
"""What the embedding lookup reads where an image's embedding will be."""


class EmbeddingSource(Protocol):
    """Where a backend reads the embeddings of images."""

    def read(self, item_id: int) -> torch.Tensor:
        """[tokens, hidden size, or a multiple of it], floating, on the CPU; only read. Raises for one that is not there."""


class NoEmbeddings:
    """Of a backend that gets no images."""

    def read(self, item_id: int) -> torch.Tensor:
        raise LookupError(f"image {item_id}: this backend has no image cache")


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """A prefill chunk: tokens [start, end) of its context, which are the batch's from `first` on."""

    row: int
    entry: int
    first: int
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class _Part:
    """Tokens [start, end) of an image, which are the batch's from `first` on."""

    row: int
    entry: int
    image: ImageSpan
    first: int
    start: int
    end: int

    def span(self) -> BidirectionalSpan:
        if self.end < self.image.tokens:
            raise ValueError(
                f"image {self.image.item_id}: a chunk ends inside it, but its tokens see each other"
            )
        return BidirectionalSpan(
            self.entry, self.first, self.end - self.start, self.image.start + self.image.tokens
        )


class RoundImages:
    """Of the prefill chunks of one round."""

    def __init__(self, round: Round, state: RowState) -> None:
        self.round = round
        """The same, with ids of the vocabulary alone."""
        self.parts: list[_Part] = []
        self._turned: list[tuple[_Chunk, list[ImageSpan]]] = []
        if not state.images:
            return
        ids = round.token_ids.copy()
        for chunk in _chunks(round):
            chunk_ids = ids[chunk.first - round.num_decode :][: chunk.end - chunk.start]
            images = state.images.get(chunk.row, [])
            for image in images:
                start, end = max(chunk.start, image.start), min(chunk.end, image.start + image.tokens)
                if start < end:
                    chunk_ids[start - chunk.start : end - chunk.start] = PLACEHOLDER_ID
                    first = chunk.first + start - chunk.start
                    inside = start - image.start, end - image.start
                    self.parts.append(_Part(chunk.row, chunk.entry, image, first, *inside))
            if chunk.start < end_of_images(images):
                self._turned.append((chunk, images))
        self.round = msgspec.structs.replace(round, token_ids=ids)

    def turn(self, batch: Batch, device: Device) -> None:
        """M-RoPE: gives the tokens of a batch, whose inputs are on the device, three rotary positions each, if those of any
        differ. Behind its images a row's tokens have their index and `rope_delta`."""
        if not self._turned:
            return
        positions = [prompt_positions(images, chunk.start, chunk.end) for chunk, images in self._turned]
        batch.rope_positions = batch.rope_positions.repeat(3, 1)
        for (chunk, _), turned in zip(self._turned, upload(device, *positions), strict=True):
            batch.rope_positions[:, chunk.first : chunk.first + turned.shape[1]] = turned

    def place(
        self, batch: Batch, model: TpPartBaseModel, source: EmbeddingSource, device: Device
    ) -> dict[int, Exception]:
        """Gives a batch the embeddings of the parts of images that it computes. Returns why those of some rows could not be
        read: what is computed for these rows means nothing."""
        errors: dict[int, Exception] = {}
        found: list[tuple[int, torch.Tensor]] = []
        for part in self.parts:
            try:
                vectors = _read(source, part, model.config.hidden_size)
                width, others = vectors.shape[1], found[0][1].shape[1] if found else vectors.shape[1]
                if width != others:
                    raise ValueError(
                        f"image {part.image.item_id}: its embedding is {width} wide, another {others}"
                    )
                if model.config.bidirectional_images:
                    batch.attention.bidirectional.append(part.span())
                found.append((part.first, vectors))
            except Exception as error:  # of this request, not of the round
                errors.setdefault(part.row, error)
        if found:
            batch.embeds = _embeds(found, device, model.activation_dtype)
        return errors


def _chunks(round: Round) -> Iterator[_Chunk]:
    starts = np.cumsum(round.q_len) - round.q_len
    for entry in range(round.num_decode, len(round.rows)):
        end = int(round.kv_len[entry])
        start = end - int(round.q_len[entry])
        yield _Chunk(int(round.rows[entry]), entry, int(starts[entry]), start, end)


def _read(source: EmbeddingSource, part: _Part, hidden: int) -> torch.Tensor:
    """Only these rows of a file in shared memory are touched."""
    embedding = source.read(part.image.item_id)
    if len(embedding) != part.image.tokens or embedding.shape[1] % hidden:
        raise ValueError(
            f"image {part.image.item_id}: its embedding has shape {list(embedding.shape)}, the prompt has "
            f"{part.image.tokens} tokens of {hidden} for it"
        )
    return embedding[part.start : part.end]


def _embeds(found: Sequence[tuple[int, torch.Tensor]], device: Device, dtype: torch.dtype) -> Embeds:
    """found: first token in the batch, and vectors of as many."""
    count, width = sum(len(vectors) for _, vectors in found), found[0][1].shape[1]
    room = device.staging(count * width * dtype.itemsize).view(dtype).view(count, width)
    torch.cat([vectors for _, vectors in found], out=room)
    where = np.concatenate([np.arange(first, first + len(vectors)) for first, vectors in found])
    return Embeds(upload(device, where)[0], room.to(device.torch_device, non_blocking=True))

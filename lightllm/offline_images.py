"""Images of an offline `LLM`: what Cache Manager and Visual Server do for a server, in the process of the `LLM`.

The table, the files and the encoder are theirs. So ranks that are processes of their own map embeddings as in a server.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence

from lightllm.cache.table import ImageTable
from lightllm.cache.virtual_ids import FIRST_VIRTUAL_ID, VirtualIds
from lightllm.config import ServerConfig
from lightllm.errors import InvalidParameter
from lightllm.images.blocking_intake import BlockingIntake
from lightllm.images.counted import CountedImages, PlacedPrompt, count_images, encode_failure
from lightllm.images.layouts.registry import layout_of
from lightllm.images.limits import ImageLimits
from lightllm.images.prompt import MarkedPrompt
from lightllm.images.serving import embedding_width
from lightllm.ipc.encoder_memory import write_encoder_memory
from lightllm.ipc.image_files import ImageFiles
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.images import CacheStats, EncodeItem, Full, Held, Want
from lightllm.server.vision import check_vision, make_cache_folder
from lightllm.tokenizer import Tokenizer
from lightllm.visual.encode_items import encode_items
from lightllm.visual.encoder import EncoderInput
from lightllm.visual.vision_encoder import VisionEncoder

_CLIENT = 1
"""In the table's books; there is no other client."""
_ANYWHERE = "/"
"""The folder of paths and file URLs without --allowed_local_media_path: the caller can read all files of this process anyway."""


class OfflineImages:
    """Not thread-safe. What is held is released by its item ids."""

    def __init__(self, config: ServerConfig, runtime: RuntimeDir, tokenizer: Tokenizer) -> None:
        """Loads the vision encoder; config: of a model that sees, its folder resolved. Raises `StartupError`."""
        check_vision(config)
        assert config.model_dir is not None
        layout = layout_of(config.model_dir, tokenizer.token_id)
        assert layout is not None
        self.layout = layout
        self._encoder = VisionEncoder(config)
        write_encoder_memory(runtime, 0, self._encoder.memory)
        self._width = embedding_width(config.model_dir)
        folder = make_cache_folder(config, runtime)
        self._tidy = weakref.finalize(self, folder.remove)
        self._files = ImageFiles(runtime.images_dir)
        discard = self._files.remove
        self._table = ImageTable(config.cache_capacity, folder.capacity_bytes, VirtualIds(), discard)
        self._cycle = 0
        limits = ImageLimits.of(config)
        local_path = limits.local_path or _ANYWHERE
        self._intake = BlockingIntake(dataclasses.replace(limits, local_path=local_path))

    def close(self) -> None:
        self._intake.close()
        self._tidy()

    def stats(self) -> CacheStats:
        return self._table.stats()

    def count(self, prompts: Sequence[MarkedPrompt]) -> list[CountedImages | None]:
        """Loads the images of all prompts; None for a prompt without any. Raises `InvalidImage`, and `InvalidParameter` for a prompt
        with more than the cache ever holds."""
        counted = self._intake.run(lambda intake: count_images(intake, self.layout, prompts))
        for images in filter(None, counted):
            if full := self._table.never_fits(self._wants(images)):
                raise InvalidParameter(full.reason, images.prompt.field)
        return counted

    def provisional(self, images: CountedImages) -> PlacedPrompt:
        """The prompt with its final length and spans, before its images have items."""
        return images.place(
            [Held(0, FIRST_VIRTUAL_ID, footprint.tokens, False, False) for footprint in images.footprints]
        )

    def hold(self, images: CountedImages, flush: Callable[[], object]) -> list[Held] | None:
        """A reference to each; None, and none held, while the cache has no room. flush: empties the prefix cache."""
        answer = self._table.hold(_CLIENT, self._wants(images))
        if isinstance(answer, Full):
            return None
        if self._table.ids.cycle > self._cycle:  # virtual ids begin anew: these had other meanings
            flush()
            self._cycle = self._table.ids.cycle
        return [self._table.held(item) for item in answer]

    def release(self, item_ids: Sequence[int]) -> None:
        """One reference each."""
        self._table.release(_CLIENT, item_ids)

    def encode(self, requests: Sequence[tuple[CountedImages, Sequence[Held]]]) -> None:
        """Makes the embeddings that are missing, each once. Raises `BackendFailed` for an image that cannot be encoded."""
        new = {
            item_id: item_and_image
            for images, held in requests
            for item_id, item_and_image in images.to_encode(held).items()
        }
        waiting = {item_id: item for item_id, (item, _) in new.items()}
        while batch := self._encoder.limits.first(waiting.values()):
            inputs: list[tuple[EncodeItem, EncoderInput]] = []
            for item in batch:
                data = new[item.item_id][1].data
                assert data is not None
                inputs.append((item, EncoderInput(data, item.params, item.tokens)))
            errors = encode_items(self._encoder, self._files, inputs)
            for item in batch:
                del waiting[item.item_id]
                if item.item_id not in errors:
                    self._table.encoded(item.item_id, self._files.size_of_embedding(item.item_id))
            for item_id, error in errors.items():
                self._table.failed(item_id)
                raise encode_failure(new[item_id][1], error)

    def _wants(self, images: CountedImages) -> list[Want]:
        """The images' bytes stay in this process."""
        return images.wants(self._width, stored=False)

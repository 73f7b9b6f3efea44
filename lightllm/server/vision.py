"""What a launch does for a model that sees, before any process starts: checks, and the folder of the image cache."""

from __future__ import annotations

import logging

from lightllm.config import ServerConfig
from lightllm.images import check_installed
from lightllm.images.layouts.registry import sees
from lightllm.images.limits import ImageLimits
from lightllm.images.serving import embedding_width, most_tokens, serves_images
from lightllm.ipc.image_files import largest_size
from lightllm.ipc.image_folder import ImageFolder, make_image_folder
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.model_folder.config import read_whole_config


def check_vision(config: ServerConfig) -> None:
    """config: with the model folder resolved. Raises `StartupError`; for a text model nothing is looked at."""
    if serves_images(config):
        check_installed()
        ImageLimits.of(config)
    elif config.nnodes > 1 and config.model_dir and sees(read_whole_config(config.model_dir)):
        logging.getLogger("supervisor").warning("--nnodes %d: images are not taken", config.nnodes)


def make_cache_folder(config: ServerConfig, runtime: RuntimeDir) -> ImageFolder:
    """Raises `StartupError` where there is no room for it."""
    assert config.model_dir is not None
    shape = [most_tokens(config), embedding_width(config.model_dir)]
    largest = largest_size(config.max_image_mb << 20, shape, "float32")
    return make_image_folder(runtime, config.cache_capacity_bytes, largest)
